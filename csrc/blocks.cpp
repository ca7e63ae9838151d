#include "blocks.h"

#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

namespace glmlite {

static const FormatInfo kFormats[kFormatCount] = {
    {"F32", 0, 1, 4},       {"F16", 1, 1, 2},       {"BF16", 30, 1, 2},       {"Q8_0", 8, 32, 34},
    {"Q4_0", 2, 32, 18},    {"Q4_1", 3, 32, 20},    {"Q5_0", 6, 32, 22},      {"Q5_1", 7, 32, 24},
    {"Q2_K", 10, 256, 84},  {"Q3_K", 11, 256, 110}, {"Q4_K", 12, 256, 144},   {"Q5_K", 13, 256, 176},
    {"Q6_K", 14, 256, 210}, {"IQ4_NL", 20, 32, 18}, {"IQ4_XS", 23, 256, 136},
};

// Types that a file may hold and the engine has no kernels for. Their sizes let the file be checked and listed.
static const FormatInfo kOtherTypes[] = {
    {"Q8_1", 9, 32, 40},      {"Q8_K", 15, 256, 292}, {"IQ2_XXS", 16, 256, 66}, {"IQ2_XS", 17, 256, 74},
    {"IQ3_XXS", 18, 256, 98}, {"IQ1_S", 19, 256, 50}, {"IQ3_S", 21, 256, 110},  {"IQ2_S", 22, 256, 82},
    {"I8", 24, 1, 1},         {"I16", 25, 1, 2},      {"I32", 26, 1, 4},        {"I64", 27, 1, 8},
    {"F64", 28, 1, 8},        {"IQ1_M", 29, 256, 56}, {"Q4_0_4_4", 31, 32, 18}, {"Q4_0_4_8", 32, 32, 18},
    {"Q4_0_8_8", 33, 32, 18}, {"TQ1_0", 34, 256, 54}, {"TQ2_0", 35, 256, 66},   {"MXFP4", 39, 32, 17},
    {"NVFP4", 40, 64, 36},    {"Q1_0", 41, 128, 18},
};

const FormatInfo& format_info(Format format) { return kFormats[static_cast<int>(format)]; }

bool format_from_gguf(uint32_t type, Format* format) {
  for (int i = 0; i < kFormatCount; ++i) {
    if (kFormats[i].gguf_type == type) {
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
  std::vector<FormatInfo> types(std::begin(kFormats), std::end(kFormats));
  types.insert(types.end(), std::begin(kOtherTypes), std::end(kOtherTypes));
  return types;
}

}  // namespace glmlite
