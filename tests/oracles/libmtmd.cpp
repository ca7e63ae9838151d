// What llama.cpp's libmtmd makes of a prompt with images, for llamacpp_vision.py:
//   libmtmd TEXT.gguf MMPROJ.gguf OUT PROMPT (WIDTH HEIGHT RGB)...
// writes OUT.ids (a line each, -1 for an image's), OUT.rows and OUT.logits (of the last token), f32, and prints the
// position after the prompt. RGB: a file of pixels. Attention without flash, keys and values in f32.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

static int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

int main(int argc, char** argv) {
  llama_backend_init();
  llama_model_params of_model = llama_model_default_params();
  of_model.n_gpu_layers = 0;
  llama_model* model = llama_model_load_from_file(argv[1], of_model);
  if (!model) return fail("the text model was not loaded");
  llama_context_params of_context = llama_context_default_params();
  of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = 256;
  of_context.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  of_context.type_k = of_context.type_v = GGML_TYPE_F32;
  llama_context* context = llama_init_from_model(model, of_context);
  mtmd_context_params of_eyes = mtmd_context_params_default();
  of_eyes.use_gpu = of_eyes.warmup = false;
  of_eyes.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  mtmd_context* eyes = mtmd_init_from_file(argv[2], model, of_eyes);
  if (!eyes) return fail("the eyes were not loaded");

  std::vector<const mtmd_bitmap*> images;
  for (int i = 5; i + 2 < argc; i += 3) {
    const int width = std::atoi(argv[i]), height = std::atoi(argv[i + 1]);
    std::vector<char> rgb(3 * width * height);
    if (!std::ifstream(argv[i + 2], std::ios::binary).read(rgb.data(), rgb.size())) return fail(argv[i + 2]);
    images.push_back(mtmd_bitmap_init(width, height, reinterpret_cast<unsigned char*>(rgb.data())));
  }
  const std::string prompt = argv[4], out = argv[3];
  const mtmd_input_text text{prompt.data(), prompt.size(), false, true};
  mtmd_input_chunks* chunks = mtmd_input_chunks_init();
  if (mtmd_tokenize(eyes, chunks, &text, images.data(), images.size())) return fail("the prompt was not cut");

  std::ofstream ids(out + ".ids"), rows(out + ".rows", std::ios::binary), last(out + ".logits", std::ios::binary);
  llama_pos past = 0;
  const size_t count = mtmd_input_chunks_size(chunks);
  for (size_t i = 0; i < count; i++) {
    const mtmd_input_chunk* chunk = mtmd_input_chunks_get(chunks, i);
    size_t n = mtmd_input_chunk_get_n_tokens(chunk);
    const llama_token* tokens = mtmd_input_chunk_get_tokens_text(chunk, &n);
    if (!tokens) n = mtmd_input_chunk_get_n_tokens(chunk);
    for (size_t k = 0; k < n; k++) ids << (tokens ? tokens[k] : -1) << "\n";
    int failed;
    if (tokens) {
      failed = mtmd_helper_eval_chunk_single(eyes, context, chunk, past, 0, 256, i + 1 == count, &past);
    } else {
      if (mtmd_encode_chunk(eyes, chunk)) return fail("an image was not read");
      float* x = mtmd_get_output_embd(eyes);
      rows.write(reinterpret_cast<char*>(x), 4 * n * llama_model_n_embd_inp(model));
      failed = mtmd_helper_decode_image_chunk(eyes, context, chunk, x, past, 0, 256, &past, nullptr, nullptr);
    }
    if (failed) return fail("a chunk was not read");
  }
  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  last.write(reinterpret_cast<const char*>(llama_get_logits_ith(context, -1)), 4 * vocab);
  std::printf("%d\n", past);
}
