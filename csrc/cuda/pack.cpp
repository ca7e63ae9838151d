#include "pack.h"

#include <algorithm>
#include <cstring>

#include "../raw_block.h"
#include "kernels.h"

namespace glmlite::cuda {

namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of a tile.
int64_t tile_bytes(Format format, int64_t k) {
  if (is_float(format)) return kFloatRows * round_up(k * format_info(format).block_bytes, 16);
  return supers_of(k) * super_bytes(form_of(packed_form(format)));
}

int64_t tile_rows(Format format) { return is_float(format) ? kFloatRows : kTileRows; }

void pack_float_tile(Format format, const uint8_t* rows, int64_t k, int64_t count, uint8_t* tile) {
  const int64_t row_bytes = k * format_info(format).block_bytes;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t at = 0; at < row_bytes; at += 16)
      std::memcpy(tile + at * kFloatRows + r * 16, rows + r * row_bytes + at, std::min<int64_t>(16, row_bytes - at));
  }
}

void or32(uint8_t* p, uint32_t value) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  word |= value;
  std::memcpy(p, &word, 4);
}

// The lowest `bits` of each byte of four codes.
uint32_t low_bits(uint32_t codes, int bits) { return codes & 0x01010101u * ((1u << bits) - 1); }

// Nibbles of four bytes, next to each other.
uint32_t gather_nibbles(uint32_t codes) {
  return (codes & 15) | (codes >> 4 & 0xf0) | (codes >> 8 & 0xf00) | (codes >> 12 & 0xf000);
}

// 32 codes of row `row` into block `block` of a superblock, whose codes are zeroed.
void put_codes(const Form& f, const uint8_t* code, int block, int row, uint8_t* codes) {
  uint8_t *low = codes + block / 2 * pair_bytes(f), *high = low + pair_low_bytes(f);
  const int in = block % 2, r = row / 8;
  for (int quad = 0; quad < 8; ++quad) {
    const int lane = row % 8 * 4 + quad % 4, half = quad / 4, j = r + 2 * half;
    uint32_t c;
    std::memcpy(&c, code + 4 * quad, 4);
    c ^= 0x01010101u * static_cast<uint32_t>(f.flip);
    if (f.low_bits == 8) std::memcpy(low + (in * 32 + lane) * 16 + 4 * j, &c, 4);
    if (f.low_bits == 4) {
      const uint32_t nibbles = low_bits(c, 4);
      or32(low + lane * 16 + in * 8 + 4 * r, f.has_table ? gather_nibbles(nibbles) << 16 * half : nibbles << 4 * half);
    }
    if (f.low_bits == 2) or32(low + lane * 8 + in * 4, low_bits(c, 2) << 2 * j);
    if (f.high_bits == 1) or32(high + lane * 4, low_bits(c >> 4, 1) << (in * 4 + j));
    if (f.high_bits == 2) or32(high + lane * 8 + in * 4, low_bits(c >> 4, 2) << 2 * j);
  }
}

// The scales of a row of a format of blocks of 256. `format`: as the file stores it.
void put_scales(Format format, const RawBlock& raw, int row, uint8_t* h) {
  switch (traits_of(packed_form(format)).scales) {
    case Scales::kPairs: {  // with minimums: those without are packed as bytes
      uint8_t* at = h + 16 * row;
      std::memcpy(at, &raw.d, 2);
      std::memcpy(at + 2, &raw.min, 2);
      for (int b = 0; b < 4; ++b) {
        const int s = raw.scale[b], s4 = raw.scale[b + 4], m = raw.minimum[b], m4 = raw.minimum[b + 4];
        at[4 + b] = static_cast<uint8_t>((s & 15) | (s4 & 15) << 4);
        at[8 + b] = static_cast<uint8_t>((m & 15) | (m4 & 15) << 4);
        at[12 + b] = static_cast<uint8_t>(s >> 4 | s4 >> 4 << 2 | m >> 4 << 4 | m4 >> 4 << 6);
      }
      break;
    }
    case Scales::kBytes:  // Q3_K's scales have a zero point of 32, Q6_K's are signed
      for (int g = 0; g < 16; ++g)
        h[16 * row + g] = static_cast<uint8_t>(format == Format::kQ3_K ? raw.scale[g] + 96 : raw.scale[g] ^ 128);
      std::memcpy(h + 256 + 2 * row, &raw.d, 2);
      break;
    case Scales::kSplit:
      std::memcpy(h + 8 * row, raw.scale, 8);
      std::memcpy(h + 128 + 2 * row, &raw.d, 2);
      break;
    case Scales::kNibbles:
      for (int g = 0; g < 16; ++g) h[16 * row + g] = static_cast<uint8_t>(raw.scale[g] | raw.minimum[g] << 4);
      std::memcpy(h + 256 + 4 * row, &raw.d, 2);
      std::memcpy(h + 256 + 4 * row + 2, &raw.min, 2);
      break;
    case Scales::kNone:
      break;
  }
}

// Added to the codes of a format that becomes another, so that the zero point is the other's.
int moved_zero(Format format) {
  if (format == Format::kQ5_0) return -16;
  return format == Format::kQ3_K ? 32 - 4 : 0;
}

// `count` rows of the tile; the others stay zero.
void pack_tile(Format format, const uint8_t* rows, int64_t k, int64_t count, uint8_t* tile) {
  const Form f = form_of(packed_form(format));
  const FormatInfo& info = format_info(format);
  const int64_t row_bytes = k / info.block_values * info.block_bytes;
  const int moved = moved_zero(format);
  RawBlock raw;
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* from = rows + r * row_bytes;
    for (int64_t column = 0; column < k; column += info.block_values, from += info.block_bytes) {
      uint8_t* header = tile + column / kSuperColumns * super_bytes(f);
      read_block(format, from, &raw);
      if (moved) {
        for (int i = 0; i < info.block_values; ++i) raw.code[i] = static_cast<uint8_t>(raw.code[i] + moved);
      }
      const auto first = static_cast<int>(column % kSuperColumns / kBlockColumns), row = static_cast<int>(r);
      for (int b = 0; b < info.block_values / kBlockColumns; ++b)
        put_codes(f, raw.code + kBlockColumns * b, first + b, row, header + f.header_bytes);
      if (f.is_super) {
        put_scales(format, raw, row, header);
      } else {
        std::memcpy(header + 16 * r + 2 * first, &raw.d, 2);
        if (f.has_min) std::memcpy(header + 256 + 16 * r + 2 * first, &raw.min, 2);
      }
    }
  }
}

}  // namespace

size_t packed_offset(Format format, int64_t n, int64_t k, int64_t row) {
  const int64_t rows = tile_rows(format);
  return static_cast<size_t>((std::min(row, n) + rows - 1) / rows * tile_bytes(format, k));
}

size_t packed_bytes(Format format, int64_t n, int64_t k) { return packed_offset(format, n, k, n); }

void pack_rows(Format format, const uint8_t* rows, int64_t n, int64_t k, int64_t begin, int64_t end, uint8_t* piece) {
  const FormatInfo& info = format_info(format);
  const int64_t row_bytes = k / info.block_values * info.block_bytes, size = tile_bytes(format, k);
  std::memset(piece, 0, packed_offset(format, n, k, end) - packed_offset(format, n, k, begin));
  for (int64_t row = begin; row < end; row += tile_rows(format), piece += size) {
    const int64_t count = std::min(tile_rows(format), end - row);
    if (is_float(format)) {
      pack_float_tile(format, rows + (row - begin) * row_bytes, k, count, piece);
    } else {
      pack_tile(format, rows + (row - begin) * row_bytes, k, count, piece);
    }
  }
}

}  // namespace glmlite::cuda
