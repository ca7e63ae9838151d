// How packed tensors lie in memory; shared by pack.cpp and the kernels.
//
// A panel is 16 rows side by side. Float formats: [k][16]. Quantized formats: superblocks of 256 columns (a last one of
// fewer, if k asks for it), each a header with the scales, then 64 (low_bits + high_bits) bytes per block of 32
// columns.
//
// The code of column 4 j + i of row r, j in 0..7, has byte 4 r + i of a 64-byte vector to itself ("place" below):
//   8 bits: vector j
//   4 bits: vector j % 4, low nibble if j < 4, else high: as most formats store 32 values, so that packing is a copy
//   2 bits: vector j / 4, bits 2 (j % 4)
// High bits follow in vectors of their own: one bit: vector 0, bit j; two bits: vector j / 4, bits 2 (j % 4).
//
// Headers, by Scales; each item has 16 entries, one for each row:
//   blocks of 32: for each block f16 d (then f16 min); as a whole padded to 64 bytes
//   nibbles (Q2_K): f16 d, f16 min, for each group of 16 columns a byte scale | minimum << 4
//   pairs without minimums (Q3_K): f16 d, 32 bytes unused, then pairs (scale of the even group, of the odd group)
//   pairs (Q4_K, Q5_K): f16 d, f16 min, then pairs (scale, minimum)
//   bytes (Q6_K): f16 d, for each group of 16 columns an int8 scale, 32 bytes unused
//   split (IQ4_XS): f16 d, for each two blocks a byte of low scale nibbles, for each four blocks a byte of high bits
// A pair (a, b) of 6-bit numbers per block: for each block a byte (a & 15) | (b & 15) << 4, then for each two blocks a
// byte whose nibble (block % 2) is a >> 4 | (b >> 4) << 2.
#pragma once
#include <cstdint>
#include <cstring>

#include "../raw_block.h"
#include "inline.h"
#include "kernels.h"

namespace glmlite {
namespace {

constexpr int kBlockColumns = 32, kSuperColumns = 256;
constexpr int kSuperBlocks = kSuperColumns / kBlockColumns;

// Tokens whose sums wait in scratch at once; weights are unpacked again for the next ones. A multiple of every set's
// kTileTokens.
constexpr int kMaxTokens = 588;

constexpr int kPairs = 64, kPairsHigh = 192;         // offsets of pairs in a header
constexpr int kNibbleScales = 64, kByteScales = 32;  // offsets of scales
constexpr int kSplitScales = 32, kSplitScalesHigh = 96;

GLMLITE_INLINE float float_of(int32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Bytes of a block's codes, of the header of `blocks` blocks, of both.
constexpr int64_t code_bytes(const FormatTraits& t) { return 64 * (t.low_bits + t.high_bits); }
constexpr int64_t header_bytes(const FormatTraits& t, int64_t blocks) {
  return t.is_super ? t.header_bytes : (t.header_bytes * blocks + 63) / 64 * 64;
}
constexpr int64_t super_bytes(const FormatTraits& t, int64_t blocks) {
  return header_bytes(t, blocks) + blocks * code_bytes(t);
}
constexpr int64_t panel_bytes(const FormatTraits& t, int64_t k) {
  const int64_t rest = k % kSuperColumns / kBlockColumns;
  return k / kSuperColumns * super_bytes(t, kSuperBlocks) + (rest ? super_bytes(t, rest) : 0);
}

}  // namespace

// Row `row` of packed panels as f32.
void unpack_panel_row(Format format, const uint8_t* panels, int64_t k, int64_t row, float* x);

}  // namespace glmlite
