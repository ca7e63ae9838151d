#include "attention.h"

#include "kernels.h"

namespace glmlite {

size_t kv_bytes(KvType type, int64_t head_dim) {
  return static_cast<size_t>(kPageTokens) *
         (type == KvType::kF16 ? head_dim * sizeof(uint16_t) : padded(head_dim) + sizeof(float));
}

size_t latent_bytes(KvType type, int64_t latent, int64_t rope) {
  return static_cast<size_t>(kPageTokens) *
         (type == KvType::kF16 ? (latent + rope) * sizeof(uint16_t) : latent_columns(latent, rope) + 2 * sizeof(float));
}

// Of q8 first what is made of all queries. Then what one block needs: scores (queries, kChunkTokens); for q8 two rows
// of weights per query.
size_t attend_scratch_bytes(int64_t queries, int64_t head_dim) {
  const int64_t block = queries < kQueryBlock ? queries : kQueryBlock;
  return static_cast<size_t>(rounded_query_bytes(queries, head_dim) +
                             block * (kChunkTokens * static_cast<int64_t>(sizeof(float)) + 2 * kChunkTokens));
}

size_t attend_latent_scratch_bytes(int64_t queries, int64_t latent, int64_t rope) {
  return attend_scratch_bytes(queries, latent_columns(latent, rope));
}

}  // namespace glmlite
