// A superblock of a tile of packed weights in the registers of a warp: see pack.h for what lies where.
#pragma once
#include "device.cuh"
#include "pack.h"

namespace glmlite::cuda {

// Values -127 .. 113 of kIQ4Values (raw_block.h), four to a word.
__device__ inline uint32_t table_word(int i) {
  constexpr uint32_t kWords[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
  return kWords[i];
}

// Of four nibbles of `codes`, each below the last, the bytes of the table. picks: 3210 with each digit's 4 set where
// the nibble is 8 or more.
__device__ inline uint32_t look_up(uint32_t codes, uint32_t picks) {
  const uint32_t low = __byte_perm(table_word(0), table_word(1), codes & 0x7777);
  const uint32_t high = __byte_perm(table_word(2), table_word(3), codes & 0x7777);
  return __byte_perm(low, high, picks);
}

// Byte i of a word as f32, less `zero`: its bits on top of those of 2^23 are a float.
__device__ inline float byte_to_float(uint32_t word, int i, int zero) {
  return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | i)) - (8388608.0f + static_cast<float>(zero));
}

__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
__device__ inline float half_of(const uint4& v, int i) { return half_to_float(word_of(v, i / 2) >> 16 * (i % 2)); }

template <Format kFormat>
struct Weights {
  static constexpr Form f = form_of(kFormat);
  static constexpr int kLow = f.low_bits, kHigh = f.high_bits;  // 16-byte loads of a lane
  uint4 low[kLow], high[kHigh + 1];
  uint4 scale[2];                              // of rows g and g + 8
  uint4 minimum[f.has_min && !f.is_super ? 2 : 1];
  uint32_t d[2];                               // f16, of superblocks whose scales do not leave room for it

  __device__ void load(const uint8_t* super, int lane) {
    const uint8_t* codes = super + f.header_bytes + 16 * lane;
#pragma unroll
    for (int i = 0; i < kLow; ++i) low[i] = load_once(codes + 512 * i);
#pragma unroll
    for (int i = 0; i < kHigh; ++i) high[i] = load_once(codes + 512 * (kLow + i));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if constexpr (kFormat == Format::kIQ4_XS) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(super + 8 * row));
        scale[r] = make_uint4(v.x, v.y, 0, 0);
        d[r] = __ldg(reinterpret_cast<const uint16_t*>(super + 128 + 2 * row));
      } else {
        scale[r] = __ldg(reinterpret_cast<const uint4*>(super + 16 * row));
      }
      if constexpr (kFormat == Format::kQ5_1) minimum[r] = __ldg(reinterpret_cast<const uint4*>(super + 256 + 16 * row));
      if constexpr (kFormat == Format::kQ6_K) d[r] = __ldg(reinterpret_cast<const uint16_t*>(super + 256 + 2 * row));
      if constexpr (kFormat == Format::kQ2_K) d[r] = __ldg(reinterpret_cast<const uint32_t*>(super + 256 + 4 * row));
    }
  }

  // Operand A of block b: (code - zero) << shift.
  __device__ void codes(int b, uint32_t (&a)[4]) const {
    if constexpr (kLow == 8) {
      a[0] = low[b].x;
      a[1] = low[b].y;
      a[2] = low[b].z;
      a[3] = low[b].w;
    }
    if constexpr (kLow == 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t w = word_of(low[b / 2], b % 2 * 2 + r);
        if constexpr (f.has_table) {
          const uint32_t picks = (w >> 1 & 0x44444444) | 0x32103210;
          a[r] = look_up(w, picks);
          a[2 + r] = look_up(w >> 16, picks >> 16);
        } else {
          constexpr uint32_t kMask = 0x0f0f0f0fu << f.shift;
          a[r] = w << f.shift & kMask;
          a[2 + r] = (f.shift < 4 ? w >> (4 - f.shift) : w) & kMask;
        }
      }
    }
    if constexpr (kLow == 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = word_of(low[b / 4], b % 4) >> 2 * j & 0x03030303;
    }
    if constexpr (kHigh == 1) {
      const uint32_t h = word_of(high[0], b / 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] |= (b % 2 ? h >> j : h << (4 - j)) & 0x10101010;
    }
    if constexpr (kHigh == 2) {
      const uint32_t h = word_of(high[b / 4], b % 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] |= h << (6 - 2 * j) & 0xc0c0c0c0;
    }
  }
};

// The scales of both rows of a lane, unpacked as far as it pays for a whole superblock.
template <Format kFormat>
struct Scales {
  static constexpr Form f = form_of(kFormat);
  uint32_t scale[2][4], minimum[2][4];
  float d[2], min[2];

  __device__ explicit Scales(const Weights<kFormat>& w) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scale[r][i] = word_of(w.scale[r], i);
      if constexpr (kFormat == Format::kQ5_1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) minimum[r][i] = word_of(w.minimum[r], i);
      }
      if constexpr (kFormat == Format::kQ4_K || kFormat == Format::kQ5_K) {
        const uint4 h = w.scale[r];
        d[r] = half_to_float(h.x & 0xffff);
        min[r] = -half_to_float(h.x >> 16);
        scale[r][0] = (h.y & 0x0f0f0f0f) | (h.w << 4 & 0x30303030);
        scale[r][1] = (h.y >> 4 & 0x0f0f0f0f) | (h.w << 2 & 0x30303030);
        minimum[r][0] = (h.z & 0x0f0f0f0f) | (h.w & 0x30303030);
        minimum[r][1] = (h.z >> 4 & 0x0f0f0f0f) | (h.w >> 2 & 0x30303030);
      }
      if constexpr (kFormat == Format::kQ6_K || kFormat == Format::kIQ4_XS) d[r] = half_to_float(w.d[r]);
      if constexpr (kFormat == Format::kQ2_K) {
        d[r] = half_to_float(w.d[r] & 0xffff);
        min[r] = -half_to_float(w.d[r] >> 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          minimum[r][i] = scale[r][i] >> 4 & 0x0f0f0f0f;
          scale[r][i] &= 0x0f0f0f0f;
        }
      }
    }
  }

  // What an integer of group `g` (of those of 32 or 16 columns, counted over the superblock) is to be multiplied by, in
  // row g + 8 r of the lane; and the minimum.
  __device__ float scale_of(int r, int g) const {
    if constexpr (!f.is_super) return half_to_float(scale[r][g / 2] >> 16 * (g % 2) & 0xffff);
    return d[r] * byte_to_float(scale[r][g / 4], g % 4, f.scale_zero);
  }
  __device__ float minimum_of(int r, int g) const {
    if constexpr (!f.is_super) return half_to_float(minimum[r][g / 2] >> 16 * (g % 2) & 0xffff);
    return min[r] * byte_to_float(minimum[r][g / 4], g % 4, 0);
  }
};

}  // namespace glmlite::cuda
