#include "attention.h"

#include "kernels.h"

namespace glmlite {

// Of one block: scores (queries, kChunkTokens), then the queries themselves, packed by tile.
size_t attend_scratch_bytes(int64_t queries, int64_t head_dim) {
  int64_t block = queries < kQueryBlock ? queries : kQueryBlock;
  return static_cast<size_t>(block * (kChunkTokens + head_dim)) * sizeof(float);
}

}  // namespace glmlite
