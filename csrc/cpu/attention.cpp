#include "attention.h"

#include "kernels.h"

namespace glmlite {

size_t kv_bytes(KvType type, int64_t head_dim) {
  return static_cast<size_t>(kPageTokens) *
         (type == KvType::kF16 ? head_dim * sizeof(uint16_t) : padded(head_dim) + sizeof(float));
}

// Of one block: scores (queries, kChunkTokens); then for f16 the queries themselves, packed by tile, for q8 two rows of
// weights and one of codes per query.
size_t attend_scratch_bytes(int64_t queries, int64_t head_dim) {
  const int64_t block = queries < kQueryBlock ? queries : kQueryBlock;
  const int64_t f16 = head_dim * static_cast<int64_t>(sizeof(float)), q8 = 2 * kChunkTokens + padded(head_dim);
  return static_cast<size_t>(block) * (kChunkTokens * sizeof(float) + (f16 > q8 ? f16 : q8));
}

}  // namespace glmlite
