#include "blocks.h"

namespace glmlite {

static const FormatInfo kFormats[kFormatCount] = {
    {"F32", 0, 1, 4},       {"F16", 1, 1, 2},       {"BF16", 30, 1, 2},       {"Q8_0", 8, 32, 34},
    {"Q4_0", 2, 32, 18},    {"Q4_1", 3, 32, 20},    {"Q5_0", 6, 32, 22},      {"Q5_1", 7, 32, 24},
    {"Q2_K", 10, 256, 84},  {"Q3_K", 11, 256, 110}, {"Q4_K", 12, 256, 144},   {"Q5_K", 13, 256, 176},
    {"Q6_K", 14, 256, 210}, {"IQ4_NL", 20, 32, 18}, {"IQ4_XS", 23, 256, 136},
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

}  // namespace glmlite
