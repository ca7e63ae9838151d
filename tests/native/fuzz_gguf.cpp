// libFuzzer target for the GGUF reader:
//
//     cmake -S . -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DGLMLITE_TESTS=ON \
//           -DGLMLITE_SANITIZE=address,undefined,fuzzer-no-link
//     cmake --build build-fuzz --target fuzz_gguf
//     python tests/native/seeds_gguf.py build-fuzz/seeds
//     UBSAN_OPTIONS=halt_on_error=1 build-fuzz/tests/native/fuzz_gguf -dict=build-fuzz/seeds.dict build-fuzz/seeds
#include <cstring>
#include <vector>

#include "dequantize.h"
#include "errors.h"
#include "gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto read = [&](uint64_t offset, uint64_t bytes, void* to) {
      if (bytes == 0 || offset > size || bytes > size - offset) __builtin_trap();
      std::memcpy(to, data + offset, bytes);
    };
    glmlite::Header header = glmlite::parse_gguf(read, size, "fuzz");
    for (const glmlite::Tensor& tensor : header.tensors) {
      if (tensor.bytes == 0) __builtin_trap();
      volatile uint8_t last = data[tensor.offset + tensor.bytes - 1];
      (void)last;
      if (!tensor.known) continue;
      std::vector<float> row(static_cast<size_t>(tensor.shape.back()));
      glmlite::dequantize_row(tensor.format, data + tensor.offset, tensor.shape.back(), row.data());
    }
  } catch (const glmlite::FormatError& e) { glmlite::printable(e.what()); }
  return 0;
}
