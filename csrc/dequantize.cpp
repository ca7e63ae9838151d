#include "dequantize.h"

#include <cstring>

#include "half.h"
#include "raw_block.h"

namespace glmlite {

namespace {

uint16_t load16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// 16 bytes: the low nibbles are values 0..15, the high ones 16..31.
void read_nibbles(const uint8_t* q, uint8_t* code) {
  for (int i = 0; i < 16; ++i) {
    code[i] = q[i] & 15;
    code[i + 16] = q[i] >> 4;
  }
}

// 4 bytes: bit i is the fifth bit of value i.
void add_fifth_bits(const uint8_t* h, uint8_t* code) {
  for (int c = 0; c < 4; ++c) {
    // The product has bit i of its seven at 8 i, and they carry into no neighbour.
    uint64_t fifth = (h[c] & 127) * 0x0002040810204081u & 0x0101010101010101u, four;
    fifth |= static_cast<uint64_t>(h[c] >> 7) << 56;
    memcpy(&four, code + 8 * c, 8);
    four |= fifth << 4;
    memcpy(code + 8 * c, &four, 8);
  }
}

// 12 bytes: eight 6-bit scales and eight 6-bit minimums. The first four of each are the low 6 bits of bytes 0..3 and
// 4..7; the last four have their low nibbles in bytes 8..11 and their high bits on top of bytes 0..3 and 4..7.
void read_scales_k4(const uint8_t* s, uint8_t* scale, uint8_t* minimum) {
  for (int i = 0; i < 4; ++i) {
    scale[i] = s[i] & 63;
    minimum[i] = s[i + 4] & 63;
    scale[i + 4] = static_cast<uint8_t>((s[i + 8] & 15) | (s[i] >> 6) << 4);
    minimum[i + 4] = static_cast<uint8_t>(s[i + 8] >> 4 | (s[i + 4] >> 6) << 4);
  }
}

// 128 bytes: of each 32, the low nibbles are 32 values and the high nibbles the next 32.
void read_nibbles_k(const uint8_t* q, uint8_t* code) {
  for (int c = 0; c < 4; ++c) {
    for (int i = 0; i < 32; ++i) {
      code[64 * c + i] = q[32 * c + i] & 15;
      code[64 * c + 32 + i] = q[32 * c + i] >> 4;
    }
  }
}

// 64 bytes: of each 32, bits 0-1, 2-3, 4-5, 6-7 are the values of four runs of 32.
void read_pairs_k(const uint8_t* q, uint8_t* code) {
  for (int c = 0; c < 8; ++c) {
    for (int i = 0; i < 32; ++i) code[32 * c + i] = q[32 * (c / 4) + i] >> 2 * (c % 4) & 3;
  }
}

}  // namespace

void read_block(Format format, const uint8_t* p, RawBlock* raw) {
  switch (format) {
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
      break;             // no blocks
    case Format::kQ8_0:  // d, 32 int8
      raw->d = load16(p);
      memcpy(raw->code, p + 2, 32);
      break;
    case Format::kQ4_0:
    case Format::kIQ4_NL:  // d, nibbles
      raw->d = load16(p);
      read_nibbles(p + 2, raw->code);
      break;
    case Format::kQ4_1:  // d, min, nibbles
      raw->d = load16(p);
      raw->min = load16(p + 2);
      read_nibbles(p + 4, raw->code);
      break;
    case Format::kQ5_0:  // d, fifth bits, nibbles
      raw->d = load16(p);
      read_nibbles(p + 6, raw->code);
      add_fifth_bits(p + 2, raw->code);
      break;
    case Format::kQ5_1:  // d, min, fifth bits, nibbles
      raw->d = load16(p);
      raw->min = load16(p + 2);
      read_nibbles(p + 8, raw->code);
      add_fifth_bits(p + 4, raw->code);
      break;
    case Format::kQ2_K:  // 16 bytes of scale | minimum << 4, pairs, d, min
      for (int g = 0; g < 16; ++g) {
        raw->scale[g] = p[g] & 15;
        raw->minimum[g] = p[g] >> 4;
      }
      read_pairs_k(p + 16, raw->code);
      raw->d = load16(p + 80);
      raw->min = load16(p + 82);
      break;
    case Format::kQ3_K: {  // third bits (bit c of byte i: value 32 c + i), pairs, 12 bytes of scales, d
      read_pairs_k(p + 32, raw->code);
      for (int c = 0; c < 8; ++c) {
        for (int i = 0; i < 32; ++i)
          raw->code[32 * c + i] = static_cast<uint8_t>(raw->code[32 * c + i] | (p[i] >> c & 1) << 2);
      }
      const uint8_t* s = p + 96;  // low nibbles: 0..7 below 8..15 in bytes 0..7; two high bits: in bytes 8..11
      for (int g = 0; g < 16; ++g) {
        const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> 2 * (g / 4) & 3;
        raw->scale[g] = static_cast<uint8_t>(low | high << 4);
      }
      raw->d = load16(p + 108);
      break;
    }
    case Format::kQ4_K:  // d, min, scales and minimums, nibbles
      raw->d = load16(p);
      raw->min = load16(p + 2);
      read_scales_k4(p + 4, raw->scale, raw->minimum);
      read_nibbles_k(p + 16, raw->code);
      break;
    case Format::kQ5_K:  // d, min, scales and minimums, fifth bits (bit c of byte i: value 32 c + i), nibbles
      raw->d = load16(p);
      raw->min = load16(p + 2);
      read_scales_k4(p + 4, raw->scale, raw->minimum);
      read_nibbles_k(p + 48, raw->code);
      for (int c = 0; c < 8; ++c) {
        for (int i = 0; i < 32; ++i) {
          raw->code[32 * c + i] = static_cast<uint8_t>(raw->code[32 * c + i] | (p[16 + i] >> c & 1) << 4);
        }
      }
      break;
    case Format::kQ6_K:  // low nibbles, high pairs, 16 int8 scales, d; nibbles: of each 64, then the next 64 on top
      for (int c = 0; c < 8; ++c) {
        const uint8_t* low = p + 64 * (c / 4) + 32 * (c % 2);
        const uint8_t* high = p + 128 + 32 * (c / 4);
        for (int i = 0; i < 32; ++i) {
          const int nibble = low[i] >> (c % 4 < 2 ? 0 : 4) & 15;
          raw->code[32 * c + i] = static_cast<uint8_t>(nibble | (high[i] >> 2 * (c % 4) & 3) << 4);
        }
      }
      memcpy(raw->scale, p + 192, 16);
      raw->d = load16(p + 208);
      break;
    case Format::kIQ4_XS: {  // d, 16 bits of two high scale bits, 8 low scale nibbles, then nibbles as IQ4_NL's
      raw->d = load16(p);
      const int high = load16(p + 2);
      for (int g = 0; g < 8; ++g) {
        raw->scale[g] = static_cast<uint8_t>((p[4 + g / 2] >> 4 * (g % 2) & 15) | (high >> 2 * g & 3) << 4);
        read_nibbles(p + 8 + 16 * g, raw->code + 32 * g);
      }
      break;
    }
  }
}

void block_values(Format format, const RawBlock& raw, float* y) {
  const FormatTraits& t = traits_of(format);
  const int values = format_info(format).block_values, group = 32 / t.groups;
  const float d = half_to_float(raw.d), min = t.has_min ? half_to_float(raw.min) : 0;
  for (int i = 0; i < values; ++i) {
    const int g = i / group;
    float w = d, m = min;
    if (t.is_super) {
      const bool is_signed = t.scales == Scales::kBytes;
      const int scale = is_signed ? static_cast<int8_t>(raw.scale[g]) : raw.scale[g] - t.scale_zero;
      w = d * static_cast<float>(scale);
      if (t.has_min) m = -(min * static_cast<float>(raw.minimum[g]));
    }
    int c = raw.code[i];
    if (t.has_table) c = kIQ4Values[c];
    if (t.low_bits == 8) c = static_cast<int8_t>(c);
    const float x = w * static_cast<float>(c - t.zero);
    y[i] = t.has_min ? x + m : x;
  }
}

void dequantize_row(Format format, const uint8_t* row, int64_t k, float* y) {
  if (format == Format::kF32) {
    memcpy(y, row, static_cast<size_t>(k) * 4);
    return;
  }
  if (format == Format::kF16) {
    for (int64_t i = 0; i < k; ++i) y[i] = half_to_float(load16(row + 2 * i));
    return;
  }
  if (format == Format::kBF16) {
    for (int64_t i = 0; i < k; ++i) y[i] = bfloat_to_float(load16(row + 2 * i));
    return;
  }
  const FormatInfo& info = format_info(format);
  RawBlock raw;
  for (int64_t i = 0; i < k; i += info.block_values, row += info.block_bytes) {
    read_block(format, row, &raw);
    block_values(format, raw, y + i);
  }
}

}  // namespace glmlite
