// libFuzzer target for exported files: opens one, tokenizes, renders, answers.
//
//     cmake -S . -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DGLMLITE_TESTS=ON \
//           -DGLMLITE_SANITIZE=address,undefined,fuzzer-no-link
//     cmake --build build-fuzz --target fuzz_exported
//     mkdir -p build-fuzz/exported && cp tests/data/tiny.glmlite build-fuzz/exported
//     UBSAN_OPTIONS=halt_on_error=1 build-fuzz/tests/native/fuzz_exported -max_len=65536 -rss_limit_mb=4096 \
//           build-fuzz/exported
#include <cstdio>
#include <string>

#include "capi/glmlite.h"
#include "gguf_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const glmlite::Folder folder;
  const std::string path = folder.write("fuzz.glmlite", std::string(reinterpret_cast<const char*>(data), size));
  glmlite_options options{};
  options.size = sizeof options;
  options.threads = 1;
  options.context = 32;
  glmlite_model* model = nullptr;
  glmlite_error error;
  if (glmlite_open(path.c_str(), &options, &model, &error) != GLMLITE_OK) return error.message[0] == 0;
  const glmlite_message message{"user", "The <|im_end|> 12\n 你", 20};
  int32_t ids[64];
  size_t count = 0;
  glmlite_session* session = nullptr;
  glmlite_params params{};
  params.size = sizeof params;
  if (glmlite_get_params(model, &params, nullptr) != GLMLITE_OK) __builtin_trap();
  if (glmlite_session_new(model, &session, nullptr) != GLMLITE_OK) __builtin_trap();
  params.max_tokens = 3;
  if (glmlite_tokenize(model, message.text, message.length, GLMLITE_PROMPT, ids, 64, &count, nullptr) == GLMLITE_OK)
    glmlite_generate(session, ids, count, &params, nullptr, nullptr);
  glmlite_chat(session, &message, 1, &params, nullptr, nullptr);
  glmlite_session_free(session);
  glmlite_close(model);
  return 0;
}
