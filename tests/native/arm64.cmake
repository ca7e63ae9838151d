# Toolchain that cross-compiles for 64-bit Arm and runs the tests under qemu. On Debian and Ubuntu:
#
#     apt-get install g++-aarch64-linux-gnu qemu-user-static
#     cmake -S . -B build-arm64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=tests/native/arm64.cmake -DGLMLITE_TESTS=ON
#     cmake --build build-arm64 && ctest --test-dir build-arm64 --output-on-failure
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
