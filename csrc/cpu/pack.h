// From a file's rows to the panels that the kernels read; lossless.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../blocks.h"

namespace glmlite {

// Bytes of the panels of an (n, k) tensor: rows padded to 16. k is a multiple of the format's block.
size_t packed_bytes(Format format, int64_t n, int64_t k);

// Packs the panels [panel_begin, panel_end) of a tensor of n rows of k values into `panels`, the 64-byte aligned start
// of the whole packed tensor. `rows`: those of these panels, as the file stores them (no alignment is needed).
// Threads may pack different panels at once.
void pack_panels(Format format, const uint8_t* rows, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end,
                 uint8_t* panels);

}  // namespace glmlite
