// csrc/cuda/ptx.cuh on the CPU.
#pragma once
#include <cuda_runtime.h>

#include "half.h"

namespace glmlite::cuda {

inline uint8_t* shared_memory() { return static_cast<uint8_t*>(cuda_host::shared_bytes()); }

inline float half_to_float(uint32_t bits) { return glmlite::half_to_float(static_cast<uint16_t>(bits)); }

// To nearest even.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000;
  const float size = fabsf(x);
  if (!(size == size)) return 0x7fff;
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  if (size < 0x1p-14f) return static_cast<uint16_t>(sign | (float_to_bits(size + 0.5f) - float_to_bits(0.5f)));
  const uint32_t magnitude = float_to_bits(size) - (112u << 23);
  return static_cast<uint16_t>(sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline uint32_t halves_of(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
inline uint32_t half2_minus(uint32_t v, int number) {
  return halves_of(half_to_float(v & 0xffff) - static_cast<float>(number),
                   half_to_float(v >> 16) - static_cast<float>(number));
}

inline void start_next() {}
inline void wait_for_previous() { cuda_host::wait_for_previous(); }
inline void prefetch(const void*) {}

inline uint4 load_once(const void* p) { return *static_cast<const uint4*>(p); }

inline void copy_async(void* to, const void* from) { cuda_host::copy_later(to, from, 16); }
inline void commit_copies() { cuda_host::commit_copies(); }
template <int kUnderWay>
inline void copies_done() {
  cuda_host::wait_copies(kUnderWay);
}

inline int dot4(uint32_t a, uint32_t b) {
  int sum = 0;
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return sum;
}

// a and b of all lanes: word w of lane l is given[16 l + w].
inline void mma_words(int (&d)[4], const uint32_t* mine, int a_words, int c) {
  const auto* given = reinterpret_cast<const uint32_t*>(cuda_host::exchange(mine, sizeof(uint32_t) * 6));
  const int lane = cuda_host::thread_state().lane, row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    int sum = c;
    for (int word = 0; word < a_words; ++word) {
      for (int t = 0; t < 4; ++t) {
        const uint32_t a = given[16 * (4 * row + t) + 2 * word + i / 2];
        const uint32_t b = given[16 * (4 * (column + i % 2) + t) + 4 + word];
        sum += dot4(a, b);
      }
    }
    d[i] = sum;
  }
}
inline void mma_k16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, int c) {
  const uint32_t words[6] = {a0, a1, 0, 0, b, 0};
  mma_words(d, words, 1, c);
}
inline void mma_k32(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int c) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  mma_words(d, words, 2, c);
}

// Products are exact; their sum and d are rounded once.
inline void mma_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  float mine[12];  // a, then b
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  for (int i = 0; i < 12; ++i) mine[i] = half_to_float(words[i / 2] >> 16 * (i % 2) & 0xffff);
  const auto* given = reinterpret_cast<const float*>(cuda_host::exchange(mine, sizeof mine));
  const int lane = cuda_host::thread_state().lane, row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    double sum = d[i];
    for (int t = 0; t < 4; ++t) {
      const float* of_a = given + 16 * (4 * row + t) + i / 2 * 2;
      const float* of_b = given + 16 * (4 * (column + i % 2) + t) + 8;
      for (int j = 0; j < 4; ++j) sum += static_cast<double>(of_a[j / 2 * 4 + j % 2]) * of_b[j];
    }
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace glmlite::cuda
