// Where keys and values lie in a page of the cache.
//
// A page has, of each KV head, keys and then values of 64 positions; head_dim is filled up to kv_columns with 0:
//   f16  keys [position][column], values [column][position]
//   q8   the same of code + 128, each then f32 scales [position]
// so that both lie as the matrix instruction's operand B takes them.
#pragma once
#include <string>

#include "device.cuh"

namespace glmlite::cuda {

__host__ __device__ constexpr int kv_columns(int head_dim) { return head_dim <= 64 ? 64 : 128; }
__host__ __device__ constexpr int kv_value_bytes(KvType type) { return type == KvType::kQ8 ? 1 : 2; }
// Keys or values of one head in a page.
__host__ __device__ constexpr int kv_section_bytes(KvType type, int head_dim) {
  return kPageTokens * (kv_columns(head_dim) * kv_value_bytes(type) + (type == KvType::kQ8 ? 4 : 0));
}

__device__ inline uint8_t* kv_section(const KvCache& c, int page, int kv_head, bool values) {
  const int64_t bytes = kv_section_bytes(c.type, c.head_dim);
  return c.pages + ((static_cast<int64_t>(page) * c.kv_heads + kv_head) * 2 + values) * bytes;
}

inline void check_head_dim(int head_dim) {
  if (head_dim > kMaxHeadDim)
    throw std::invalid_argument("attention on CUDA: head_dim is " + std::to_string(head_dim) + ", expected at most " +
                                std::to_string(kMaxHeadDim));
}

}  // namespace glmlite::cuda
