// From a file's rows to the panels that the kernels read; lossless.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../blocks.h"

namespace glmlite {

// Bytes of the panels of an (n, k) tensor: rows padded to 16. k is a multiple of the format's block.
size_t packed_bytes(Format format, int64_t n, int64_t k);

// Packs the panels [panel_begin, panel_end) of a tensor of n rows of k values into `panels`, which has room for them
// alone, packed_bytes(format, 16 (panel_end - panel_begin), k). `rows`: those of these panels, as the file stores them.
// Nothing needs to be aligned. Threads may pack different panels at once.
void pack_panels(Format format, const uint8_t* rows, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end,
                 uint8_t* panels);

}  // namespace glmlite
