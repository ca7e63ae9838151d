#include "kv_pages.h"

#include <algorithm>
#include <cstring>

namespace glmlite {

namespace {

constexpr int64_t kGroupPages = 16;  // 256 KB of a head's f16 keys, of 128 columns, in one stretch

}  // namespace

KvPages::KvPages(const std::vector<CacheShape>& shapes, KvType type, int64_t pages, const CpuKernels& kernels)
    : shapes_(shapes), type_(type), pages_(pages), kernels_(kernels) {
  size_t at = 0;
  for (const CacheShape& shape : shapes_) {
    Cache c = cache_of(shape, type_);
    c.offset = at;
    at += c.part_bytes * static_cast<size_t>(c.parts) * static_cast<size_t>(pages_);
    caches_.push_back(c);
  }
}

KvPages::Cache KvPages::cache_of(const CacheShape& shape, KvType type) {
  if (shape.latent) return {0, align64(latent_bytes(type, shape.value_dim, shape.key_dim - shape.value_dim)), 1};
  return {0, kv_bytes(type, shape.key_dim), 2 * shape.heads};
}

size_t KvPages::page_bytes(const std::vector<CacheShape>& shapes, KvType type) {
  size_t bytes = 0;
  for (const CacheShape& shape : shapes) {
    const Cache c = cache_of(shape, type);
    bytes += c.part_bytes * static_cast<size_t>(c.parts);
  }
  return bytes;
}

void KvPages::allocate() { memory_ = Memory(bytes(), "KV cache"); }

uint8_t* KvPages::part(const Cache& c, int32_t page, int index) const {
  const int64_t within = page % kGroupPages, first = page - within, pages = std::min(kGroupPages, pages_ - first);
  return memory_.data() + c.offset + static_cast<size_t>(first * c.parts + index * pages + within) * c.part_bytes;
}

void KvPages::copy(int32_t from, int32_t to) {
  for (const Cache& c : caches_)
    for (int i = 0; i < c.parts; ++i) std::memcpy(part(c, to, i), part(c, from, i), c.part_bytes);
}

bool KvPages::store(int cache, int32_t page, int64_t index, float* keys, const float* values) {
  const CacheShape& shape = shapes_[cache];
  const Cache& c = caches_[cache];
  bool finite = true;
  for (int head = 0; head < shape.heads; ++head) {
    float* key = keys + int64_t{head} * shape.key_dim;
    if (type_ == KvType::kQ8) kernels_.rotate(key, shape.key_dim);
    finite &= kernels_.store_kv[static_cast<int>(type_)](key, values + int64_t{head} * shape.value_dim, shape.key_dim,
                                                         part(c, page, 2 * head), part(c, page, 2 * head + 1), index);
  }
  return finite;
}

bool KvPages::store_latent(int cache, int32_t page, int64_t index, float* entry) {
  const int64_t latent = shapes_[cache].value_dim, turning = shapes_[cache].key_dim - latent;
  if (type_ == KvType::kQ8) {
    kernels_.rotate(entry, latent);
    kernels_.rotate(entry + latent, turning);
  }
  return kernels_.store_latent[static_cast<int>(type_)](entry, latent, turning, part(caches_[cache], page, 0), index);
}

}  // namespace glmlite
