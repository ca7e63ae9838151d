// The pages of the KV cache: what each attention keeps of its tokens.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../memory.h"
#include "../program.h"
#include "kernels.h"

namespace glmlite {

class KvPages {
 public:
  KvPages(const std::vector<CacheShape>& shapes, KvType type, int64_t pages, const CpuKernels& kernels);

  // Bytes of one page in all caches.
  static size_t page_bytes(const std::vector<CacheShape>& shapes, KvType type);
  size_t bytes() const { return page_bytes(shapes_, type_) * static_cast<size_t>(pages_); }
  void allocate();
  bool allocated() const { return memory_.data() || !bytes(); }
  void release() { memory_.reset(); }

  KvType type() const { return type_; }
  const uint8_t* keys(int cache, int32_t page, int head) const { return part(caches_[cache], page, 2 * head); }
  const uint8_t* values(int cache, int32_t page, int head) const { return part(caches_[cache], page, 2 * head + 1); }

  void copy(int32_t from, int32_t to);
  // A token's keys and values, those of all heads one after the other, at place `index` of a page. q8 turns the keys
  // first, where they lie. False: a value was not finite.
  bool store(int cache, int32_t page, int64_t index, float* keys, const float* values);
  // A token's latent and turned columns, likewise; `keys` of head 0 are where they lie.
  bool store_latent(int cache, int32_t page, int64_t index, float* entry);

 private:
  // Pages lie in groups; in a group, keys of its pages for the first KV head, values for it, keys for the next head. So
  // a thread reads long stretches of memory, and a short context still touches little of a long cache.
  struct Cache {
    size_t offset;      // bytes into memory_
    size_t part_bytes;  // of one KV head in a page, keys or values; or of a page of latents
    int parts;
  };
  static Cache cache_of(const CacheShape& shape, KvType type);
  uint8_t* part(const Cache& c, int32_t page, int index) const;

  const std::vector<CacheShape> shapes_;
  const KvType type_;
  const int64_t pages_;
  const CpuKernels& kernels_;
  std::vector<Cache> caches_;
  Memory memory_;
};

}  // namespace glmlite
