// libFuzzer target for the GGUF reader:
//
//     cmake -S . -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DGLMLITE_TESTS=ON \
//           -DGLMLITE_SANITIZE=address,undefined,fuzzer-no-link
//     cmake --build build-fuzz --target fuzz_gguf
//     python tests/native/seeds_gguf.py build-fuzz/seeds
//     UBSAN_OPTIONS=halt_on_error=1 build-fuzz/tests/native/fuzz_gguf -dict=build-fuzz/seeds.dict build-fuzz/seeds
#include <vector>

#include "dequantize.h"
#include "errors.h"
#include "gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    glmlite::Header header = glmlite::parse_gguf(data, size, "fuzz");
    for (const glmlite::Tensor& tensor : header.tensors) {
      if (tensor.bytes == 0) __builtin_trap();
      volatile uint8_t last = tensor.data[tensor.bytes - 1];
      (void)last;
      if (!tensor.known) continue;
      std::vector<float> row(static_cast<size_t>(tensor.shape.back()));
      glmlite::dequantize_row(tensor.format, tensor.data, tensor.shape.back(), row.data());
    }
  } catch (const glmlite::FormatError& e) { glmlite::printable(e.what()); }
  return 0;
}
