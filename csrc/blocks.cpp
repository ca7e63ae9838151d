#include "blocks.h"

#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

namespace glmlite {

// Types that a file may hold and the engine has no kernels for. Their sizes let the file be checked and listed. Floats
// that are no f16, or are put together of bits, count as none.
static const FormatInfo kOtherTypes[] = {
    {"Q8_1", 9, 32, 40, kNoFloat, kNoFloat},
    {"Q8_K", 15, 256, 292, kNoFloat, kNoFloat},
    {"IQ2_XXS", 16, 256, 66, 0, kNoFloat},
    {"IQ2_XS", 17, 256, 74, 0, kNoFloat},
    {"IQ3_XXS", 18, 256, 98, 0, kNoFloat},
    {"IQ1_S", 19, 256, 50, 0, kNoFloat},
    {"IQ3_S", 21, 256, 110, 0, kNoFloat},
    {"IQ2_S", 22, 256, 82, 0, kNoFloat},
    {"I8", 24, 1, 1, kNoFloat, kNoFloat},
    {"I16", 25, 1, 2, kNoFloat, kNoFloat},
    {"I32", 26, 1, 4, kNoFloat, kNoFloat},
    {"I64", 27, 1, 8, kNoFloat, kNoFloat},
    {"F64", 28, 1, 8, 0, kNoFloat},
    {"IQ1_M", 29, 256, 56, kNoFloat, kNoFloat},
    {"Q4_0_4_4", 31, 32, 18, kNoFloat, kNoFloat},
    {"Q4_0_4_8", 32, 32, 18, kNoFloat, kNoFloat},
    {"Q4_0_8_8", 33, 32, 18, kNoFloat, kNoFloat},
    {"TQ1_0", 34, 256, 54, kNoFloat, kNoFloat},
    {"TQ2_0", 35, 256, 66, kNoFloat, kNoFloat},
    {"MXFP4", 39, 32, 17, kNoFloat, kNoFloat},
    {"NVFP4", 40, 64, 36, kNoFloat, kNoFloat},
    {"Q1_0", 41, 128, 18, kNoFloat, kNoFloat},
};

bool format_from_gguf(uint32_t type, Format* format) {
  for (int i = 0; i < kFormatCount; ++i) {
    if (kFormats[i].info.gguf_type == type) {
      *format = static_cast<Format>(i);
      return true;
    }
  }
  return false;
}

KvType kv_type_named(const char* name) {
  if (std::strcmp(name, "f16") == 0) return KvType::kF16;
  if (std::strcmp(name, "q8") == 0) return KvType::kQ8;
  throw std::invalid_argument("kv_type: '" + std::string(name) + "', expected 'f16' or 'q8'");
}

const FormatInfo* gguf_type_info(uint32_t type) {
  Format format;
  if (format_from_gguf(type, &format)) return &format_info(format);
  for (const FormatInfo& info : kOtherTypes) {
    if (info.gguf_type == type) return &info;
  }
  return nullptr;
}

std::vector<FormatInfo> gguf_types() {
  std::vector<FormatInfo> types;
  for (const FormatRow& row : kFormats) types.push_back(row.info);
  types.insert(types.end(), std::begin(kOtherTypes), std::end(kOtherTypes));
  return types;
}

}  // namespace glmlite
