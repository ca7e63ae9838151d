// libFuzzer target for the tokenizers of csrc/text: a GGUF file's metadata, and the same bytes as a text. Built and run
// as fuzz_gguf; seeds: python tests/native/seeds_text.py build-fuzz/text
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace glmlite;
  try {
    const auto read = [&](uint64_t offset, uint64_t bytes, void* to) { std::memcpy(to, data + offset, bytes); };
    const Tokenizer tokenizer(parse_gguf(read, size, "fuzz").metadata);
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (bool special : {true, false}) {
      std::vector<int32_t> ids;
      try {
        tokenizer.encode(text, special, ids);
      } catch (const FormatError&) {}
      std::string out;
      TextStream stream(tokenizer, special);
      for (int32_t id : tokenizer.begin(ids)) stream.push(id, out);
      stream.finish(out);
      if (first_broken(out) != out.size()) __builtin_trap();
    }
    tokenizer.find("a");
  } catch (const FormatError& e) { printable(e.what()); }
  return 0;
}
