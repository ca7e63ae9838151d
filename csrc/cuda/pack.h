// How packed matrices lie in device memory; shared by pack.cpp and the kernels.
//
// Float formats: tiles of 32 rows, [k / c][32][c], c the columns that make 16 bytes; k is filled up to whole c.
//
// Quantized formats: tiles of 16 rows; a tile is superblocks of 256 columns (k is filled up), each a header with the
// scales and then, for each two blocks of 32 columns, the codes as operands A of 16 x 8 x 32 matrix instructions: lane
// 4 g + i has four words of a block, word j: row g + 8 (j % 2), columns 16 (j / 2) + 4 i .. + 3. Of a pair of blocks,
//   8 bits: [block][lane] 16 bytes: the four words
//   4 bits: [lane] 16 bytes: of each block a word with word 0 in its low nibbles and word 2 in the high ones, and one
//           with words 1 and 3. Formats with a table: code c of words 0 and 2 is nibble c and 4 + c.
//   2 bits: [lane] 8 bytes: of each block a word, bits 2 j of each byte are word j's
// High bits follow; one: [lane] 4 bytes, bit 4 block + j of each byte is word j's; two: as 2 bits above.
// Codes whose zero point is half their range have the highest bit flipped: at the top of a byte they are signed.
//
// Headers, each item for 16 rows:
//   Q8_0, Q4_0, IQ4_NL  [row][8] f16 d
//   Q5_1                [row][8] f16 d, [row][8] f16 min
//   Q4_K, Q5_K          [row] f16 d, f16 min, and three words that unpack four scales or minimums at a time: byte b of
//                       the first is scale b % 16, scale b + 4 % 16 on top; of the second, the minimums'; of the third
//                       the high two bits of scale b, scale b + 4, minimum b, minimum b + 4
//   Q6_K                [row][16] scale + 128, [row] f16 d
//   IQ4_XS              [row][8] scale, [row] f16 d
//   Q2_K                [row][16] scale | minimum << 4, [row] (f16 d, f16 min)
//
// Other formats become one of these, code for code: Q5_0 is Q8_0, Q4_1 is Q5_1, Q3_K is Q6_K.
#pragma once
#include <cstdint>

#include "../blocks.h"

namespace glmlite::cuda {

constexpr int kTileRows = 16;
constexpr int kSuperColumns = 256, kBlockColumns = 32, kSuperBlocks = kSuperColumns / kBlockColumns;
constexpr int kFloatRows = 32;

constexpr Format packed_form(Format f) {
  switch (f) {
    case Format::kQ5_0:
      return Format::kQ8_0;
    case Format::kQ4_1:
      return Format::kQ5_1;
    case Format::kQ3_K:
      return Format::kQ6_K;
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
    case Format::kQ8_0:
    case Format::kQ4_0:
    case Format::kQ5_1:
    case Format::kQ2_K:
    case Format::kQ4_K:
    case Format::kQ5_K:
    case Format::kQ6_K:
    case Format::kIQ4_NL:
    case Format::kIQ4_XS:
      return f;
  }
  return f;
}

constexpr bool is_float(Format f) { return f == Format::kF32 || f == Format::kF16 || f == Format::kBF16; }

struct Form {
  int low_bits, high_bits;
  int groups;    // of scales per block of 32
  bool has_min;  //
  bool is_super;
  bool has_table;
  int shift;       // words that the kernels make of codes are (code - zero) << shift
  int flip;        // what is flipped of a code
  int scale_zero;  // subtracted from a scale byte
  int header_bytes;
};

constexpr Form form_of(Format f) {
  switch (f) {
    case Format::kQ8_0:
      return {8, 0, 1, false, false, false, 0, 0, 0, 256};
    case Format::kQ4_0:
      return {4, 0, 1, false, false, false, 4, 8, 0, 256};
    case Format::kQ5_1:
      return {4, 1, 1, true, false, false, 0, 0, 0, 512};
    case Format::kQ2_K:
      return {2, 0, 2, true, true, false, 0, 0, 0, 320};
    case Format::kQ4_K:
      return {4, 0, 1, true, true, false, 0, 0, 0, 256};
    case Format::kQ5_K:
      return {4, 1, 1, true, true, false, 0, 0, 0, 256};
    case Format::kQ6_K:
      return {4, 2, 2, false, true, false, 2, 32, 128, 288};
    case Format::kIQ4_NL:
      return {4, 0, 1, false, false, true, 0, 0, 0, 256};
    case Format::kIQ4_XS:
      return {4, 0, 1, false, true, true, 0, 0, 32, 160};
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
    case Format::kQ4_1:  // these three are packed as others
    case Format::kQ5_0:
    case Format::kQ3_K:
      return {};
  }
  return {};
}

constexpr int kPairs = kSuperBlocks / 2;  // of blocks
constexpr int pair_low_bytes(const Form& f) { return kTileRows * 2 * kBlockColumns * f.low_bits / 8; }
constexpr int pair_bytes(const Form& f) { return kTileRows * 2 * kBlockColumns * (f.low_bits + f.high_bits) / 8; }
constexpr int super_bytes(const Form& f) { return f.header_bytes + kPairs * pair_bytes(f); }
constexpr int64_t supers_of(int64_t k) { return (k + kSuperColumns - 1) / kSuperColumns; }

// K is cut into so many segments, whose sums are added in order: segment s is the units (superblocks of quantized
// formats, 16 bytes of columns of float ones) from segment_begin(s) on.
constexpr int kSegments = 8;
constexpr int64_t segment_begin(int64_t units, int segment) { return units * segment / kSegments; }

// The quantized form of a row of activations: for each superblock
//   int8 q[4][4][16]: of two blocks, for columns 4 i .. 4 i + 3: the first block's, its columns 16 further on, and the
//   second block's: operand B of the same instruction
//   f32 d[8], products[8] (d times the sum of q), of the halves of each block [8][2]
// Columns from k on have q = 0, d = 1.
constexpr int kActScales = 256, kActProducts = kActScales + 32, kActHalfProducts = kActProducts + 32;
constexpr int kActSuperBytes = kActHalfProducts + 64;

}  // namespace glmlite::cuda
