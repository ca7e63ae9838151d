// One row of a tensor, as the file stores it, to f32.
#pragma once
#include <cstdint>

#include "blocks.h"

namespace glmlite {

// k values, a multiple of the format's block. `row` needs no alignment. Source of the formats: ggml's reference
// quantizers; the values are bit for bit those of the Python package `gguf`.
void dequantize_row(Format format, const uint8_t* row, int64_t k, float* y);

}  // namespace glmlite
