# The module _cuda: for NVIDIA GPUs, or, emulated, the same sources on the CPU.
set(cuda_seam csrc/bind_engine.cpp csrc/bind_gguf.cpp csrc/bind_isa.cpp)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp csrc/cuda/*.cu)

if(GLMLITE_CUDA STREQUAL "EMULATED")
  list(FILTER cuda_sources EXCLUDE REGEX "/measure\\.cu$")  # what it measures is not there
  file(GLOB host_sources CONFIGURE_DEPENDS tests/native/cuda_host/*.cpp)
  python_module(_cuda ${cuda_sources} ${host_sources} ${cuda_seam})
  target_include_directories(_cuda PRIVATE tests/native/cuda_host)
  target_compile_definitions(_cuda PRIVATE GLMLITE_CUDA_EMULATED)
  # -O1: kernels are unrolled for a GPU; more takes minutes and gains little here.
  list(FILTER cuda_sources INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-O1")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "GLMLITE_CUDA is ON, but there is no CUDA compiler: install the CUDA toolkit, put nvcc on the PATH "
                      "or name it in CUDACXX; or leave GLMLITE_CUDA off")
endif()
# What consumer and data centre cards have, and PTX, from which a driver compiles for those that come after them.
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90a-real 90-virtual 120)
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "GLMLITE_CUDA: ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_ID} "
                      "${CMAKE_CUDA_COMPILER_VERSION}, should be nvcc 12.0 or newer, 12.8 for sm_120")
endif()
find_package(CUDAToolkit REQUIRED)
python_module(_cuda ${cuda_sources} ${cuda_seam})
set_target_properties(_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
                                       CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
# As on the CPU, a fused multiply-add is only ever an explicit one.
target_compile_options(_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--expt-relaxed-constexpr;--threads=2>")
