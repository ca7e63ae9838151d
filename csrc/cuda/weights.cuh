// Packed weights in the registers of a warp: see pack.h for what lies where.
#pragma once
#include "device.cuh"
#include "pack.h"

namespace glmlite::cuda {

// Values -127 .. 113 of kIQ4Values (raw_block.h), four to a word.
__device__ inline uint32_t table_word(int i) {
  constexpr uint32_t kWords[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
  return kWords[i];
}

// The bytes of the table for four nibbles of `codes`, each below the last. picks: 3210 with each digit's 4 set where
// the nibble is 8 or more.
__device__ inline uint32_t look_up(uint32_t codes, uint32_t picks) {
  const uint32_t low = __byte_perm(table_word(0), table_word(1), codes & 0x7777);
  const uint32_t high = __byte_perm(table_word(2), table_word(3), codes & 0x7777);
  return __byte_perm(low, high, picks);
}

// 2^23 + byte i of a word: its bits on top of those of 2^23 are that float.
constexpr float kByteStart = 8388608.0f;
__device__ inline float byte_on_start(uint32_t word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | i));
}

// Byte i of a word as f32, less `zero`.
__device__ inline float byte_to_float(uint32_t word, int i, int zero) {
  return byte_on_start(word, i) - (kByteStart + static_cast<float>(zero));
}

__device__ inline uint32_t word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
__device__ inline float half_of(const uint4& v, int i) {
  return half_to_float(word_of(v, i / 2) >> 16 * (i % 2) & 0xffff);
}

// The codes of two blocks.
template <Format kFormat>
struct Codes {
  static constexpr Form f = form_of(kFormat);
  uint4 low[f.low_bits == 8 ? 2 : 1];
  uint2 high;

  // pair: where the codes of the two blocks begin.
  __device__ void load(const uint8_t* pair, int lane) {
    if constexpr (f.low_bits == 2) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(pair) + lane);
      low[0] = make_uint4(v.x, v.y, 0, 0);
    } else {
      low[0] = load_once(pair + 16 * lane);
      if constexpr (f.low_bits == 8) low[1] = load_once(pair + 512 + 16 * lane);
    }
    const uint8_t* rest = pair + pair_low_bytes(f);
    if constexpr (f.high_bits == 1) high.x = __ldg(reinterpret_cast<const uint32_t*>(rest) + lane);
    if constexpr (f.high_bits == 2) high = __ldg(reinterpret_cast<const uint2*>(rest) + lane);
  }

  // Operand A of block 0 or 1: (code - zero) << shift.
  __device__ void operand(int block, uint32_t (&a)[4]) const {
    if constexpr (f.low_bits == 8) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = word_of(low[block], j);
    }
    if constexpr (f.low_bits == 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t w = word_of(low[0], 2 * block + r);
        if constexpr (f.has_table) {
          const uint32_t picks = (w >> 1 & 0x44444444) | 0x32103210;
          a[r] = look_up(w, picks);
          a[2 + r] = look_up(w >> 16, picks >> 16);
        } else {
          constexpr uint32_t kMask = 0x0f0f0f0fu << f.shift;
          a[r] = w << f.shift & kMask;
          a[2 + r] = w >> (4 - f.shift) & kMask;
        }
      }
    }
    if constexpr (f.low_bits == 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = word_of(low[0], block) >> 2 * j & 0x03030303;
    }
    if constexpr (f.high_bits == 1) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] |= (block ? high.x >> j : high.x << (4 - j)) & 0x10101010;
    }
    if constexpr (f.high_bits == 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] |= (block ? high.y : high.x) << (6 - 2 * j) & 0xc0c0c0c0;
    }
  }
};

// A superblock's header: the items of a lane's rows, g and g + 8, as they are stored.
template <Format kFormat>
struct Header {
  static constexpr Form f = form_of(kFormat);
  uint4 scale[2], minimum[2];
  uint32_t d[2];

  __device__ void load(const uint8_t* super, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if constexpr (kFormat == Format::kIQ4_XS) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(super) + row);
        scale[r] = make_uint4(v.x, v.y, 0, 0);
        d[r] = __ldg(reinterpret_cast<const uint16_t*>(super + 128) + row);
      } else {
        scale[r] = __ldg(reinterpret_cast<const uint4*>(super) + row);
      }
      if constexpr (kFormat == Format::kQ5_1) minimum[r] = __ldg(reinterpret_cast<const uint4*>(super + 256) + row);
      if constexpr (kFormat == Format::kQ6_K) d[r] = __ldg(reinterpret_cast<const uint16_t*>(super + 256) + row);
      if constexpr (kFormat == Format::kQ2_K) d[r] = __ldg(reinterpret_cast<const uint32_t*>(super + 256) + row);
    }
  }
};

// Scales of a superblock, unpacked so far that each is one byte, or f16.
template <Format kFormat>
struct Scales {
  static constexpr Form f = form_of(kFormat);
  uint4 scale[2], minimum[2];
  float d[2], min[2];

  __device__ explicit Scales(const Header<kFormat>& h) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 s = scale[r] = h.scale[r];
      if constexpr (kFormat == Format::kQ5_1) minimum[r] = h.minimum[r];
      if constexpr (kFormat == Format::kQ4_K || kFormat == Format::kQ5_K) {
        d[r] = half_to_float(s.x & 0xffff);
        min[r] = -half_to_float(s.x >> 16);
        scale[r] = make_uint4((s.y & 0x0f0f0f0f) | (s.w << 4 & 0x30303030),
                              (s.y >> 4 & 0x0f0f0f0f) | (s.w << 2 & 0x30303030), 0, 0);
        minimum[r] = make_uint4((s.z & 0x0f0f0f0f) | (s.w & 0x30303030),
                                (s.z >> 4 & 0x0f0f0f0f) | (s.w >> 2 & 0x30303030), 0, 0);
      }
      if constexpr (kFormat == Format::kQ6_K || kFormat == Format::kIQ4_XS) d[r] = half_to_float(h.d[r]);
      if constexpr (kFormat == Format::kQ2_K) {
        d[r] = half_to_float(h.d[r] & 0xffff);
        min[r] = -half_to_float(h.d[r] >> 16);
        scale[r] = make_uint4(s.x & 0x0f0f0f0f, s.y & 0x0f0f0f0f, s.z & 0x0f0f0f0f, s.w & 0x0f0f0f0f);
        minimum[r] =
            make_uint4(s.x >> 4 & 0x0f0f0f0f, s.y >> 4 & 0x0f0f0f0f, s.z >> 4 & 0x0f0f0f0f, s.w >> 4 & 0x0f0f0f0f);
      }
    }
  }

  // d times byte g of the words, less `zero`: d has 11 bits and a byte 8, so both ways are exact.
  static __device__ float times_byte(float d, const uint4& words, int g, int zero) {
    const uint32_t word = word_of(words, g / 4);
    if (zero) return d * byte_to_float(word, g % 4, zero);
    return fmaf(d, byte_on_start(word, g % 4), -kByteStart * d);
  }

  // What an integer of group `g` (of those of 32 or 16 columns, counted over the superblock) is to be multiplied by, in
  // row g + 8 r of the lane; and the minimum.
  __device__ float scale_of(int r, int g) const {
    if constexpr (!f.is_super) return half_of(scale[r], g);
    return times_byte(d[r], scale[r], g, f.scale_zero);
  }
  __device__ float minimum_of(int r, int g) const {
    if constexpr (!f.is_super) return half_of(minimum[r], g);
    return times_byte(min[r], minimum[r], g, 0);
  }
};

}  // namespace glmlite::cuda
