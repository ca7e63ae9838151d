# The library glmlite_core.
file(GLOB core_sources CONFIGURE_DEPENDS csrc/*.cpp csrc/ops/*.cpp csrc/cpu/*.cpp csrc/text/*.cpp)
list(FILTER core_sources EXCLUDE REGEX "/bind[a-z_]*\\.cpp$|/kernels_[a-z0-9_]+\\.cpp$")
add_library(glmlite_core OBJECT ${core_sources})
target_include_directories(glmlite_core PUBLIC csrc)
target_link_libraries(glmlite_core PUBLIC Threads::Threads)

# A fused multiply-add is only ever an explicit one, so every instruction set computes the same bits.
if(MSVC)
  set(cxx_options /fp:precise /utf-8 /W4 /we4062 /EHsc)
  target_compile_definitions(glmlite_core PUBLIC NOMINMAX WIN32_LEAN_AND_MEAN UNICODE _UNICODE)
else()
  # A format that a switch forgets is an error.
  set(cxx_options -ffp-contract=off -Wall -Wextra -Werror=switch)
endif()
target_compile_options(glmlite_core PUBLIC "$<$<COMPILE_LANGUAGE:CXX>:${cxx_options}>")

# One file per instruction set, each with its own flags; csrc/cpu/dispatch.cpp picks at run time. A set whose flags the
# compiler does not know is left out.
include(CheckCXXCompilerFlag)
function(kernels isa)
  string(TOUPPER ${isa} name)
  foreach(flag ${ARGN})
    string(MAKE_C_IDENTIFIER "GLMLITE_ACCEPTS${flag}" accepted)
    check_cxx_compiler_flag(${flag} ${accepted})
    if(NOT ${accepted})
      message(WARNING "The compiler does not know ${flag}: no ${isa} kernels")
      return()
    endif()
  endforeach()
  target_sources(glmlite_core PRIVATE csrc/cpu/kernels_${isa}.cpp)
  set_source_files_properties(csrc/cpu/kernels_${isa}.cpp PROPERTIES COMPILE_OPTIONS "${ARGN}")
  target_compile_definitions(glmlite_core PUBLIC GLMLITE_HAS_${name})
endfunction()

string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
if(CMAKE_OSX_ARCHITECTURES)
  string(TOLOWER "${CMAKE_OSX_ARCHITECTURES}" processor)
endif()
kernels(scalar)
if(processor MATCHES "x86_64|amd64")
  if(MSVC)
    kernels(avx2 /arch:AVX2)
    kernels(avxvnni /arch:AVX2)
    kernels(avx512vnni /arch:AVX512)
    kernels(avx512vnni_amd /arch:AVX512)
  else()
    kernels(avx2 -mavx2 -mfma -mf16c)
    kernels(avxvnni -mavx2 -mfma -mf16c -mavxvnni)
    set(avx512vnni
        -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512)
    kernels(avx512vnni ${avx512vnni})
    kernels(avx512vnni_amd ${avx512vnni})
  endif()
elseif(processor MATCHES "aarch64|arm64")
  if(MSVC OR APPLE)
    kernels(neon)
  else()
    kernels(neon -march=armv8.2-a+dotprod)
  endif()
endif()

if(GLMLITE_SANITIZE)
  # -O1 and -g1: the kernels are large, and to optimize them fully under sanitizers, or to keep track of their variables,
  # would take most of the time.
  target_compile_options(glmlite_core PUBLIC -fsanitize=${GLMLITE_SANITIZE} -fno-omit-frame-pointer -g1 -O1)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # AddressSanitizer's checks as calls: they find the same, and the kernels compile in far less time.
    target_compile_options(glmlite_core PUBLIC "SHELL:--param asan-instrumentation-with-call-threshold=0")
  endif()
  target_link_options(glmlite_core PUBLIC -fsanitize=${GLMLITE_SANITIZE})
endif()

# For GLMLITE_CORE.
export(TARGETS glmlite_core FILE ${PROJECT_BINARY_DIR}/glmlite_core.cmake)
