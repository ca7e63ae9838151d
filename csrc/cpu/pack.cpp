#include "pack.h"

#include <array>
#include <cstring>

#include "../dequantize.h"
#include "../half.h"
#include "panel.h"

namespace glmlite {

namespace {

bool is_float(Format format) { return traits_of(format).low_bits == 0; }

void store16(uint8_t* p, uint16_t value) { memcpy(p, &value, 2); }
uint16_t load16(const uint8_t* p) {
  uint16_t value;
  memcpy(&value, p, 2);
  return value;
}

// The vector and the bit at which the codes of columns 4 j .. 4 j + 3 stand.
struct Place {
  int vector, shift;
};
Place low_place(int bits, int j) {
  if (bits == 8) return {j, 0};
  if (bits == 4) return {j % 4, j / 4 * 4};
  return {j / 4, j % 4 * 2};
}
Place high_place(int bits, int j) { return bits == 1 ? Place{0, j} : Place{j / 4, j % 4 * 2}; }

uint32_t load32(const uint8_t* p) {
  uint32_t value;
  memcpy(&value, p, 4);
  return value;
}
void or32(uint8_t* p, uint32_t value) {
  value |= load32(p);
  memcpy(p, &value, 4);
}

// In each of four bytes, the lowest `bits`.
uint32_t low_bits(uint32_t bytes, int bits) { return bytes & 0x01010101u * ((1u << bits) - 1); }

// 32 codes of one row into, or out of, a zeroed block of a panel: four at a time, whose bits leave no byte.
inline void put_codes(const FormatTraits& t, const uint8_t* code, int row, uint8_t* block) {
  uint8_t* high = block + 64 * t.low_bits;
  for (int j = 0; j < 8; ++j) {
    const uint32_t c = load32(code + 4 * j);
    const Place low = low_place(t.low_bits, j), top = high_place(t.high_bits, j);
    or32(block + 64 * low.vector + 4 * row, low_bits(c, t.low_bits) << low.shift);
    if (t.high_bits) or32(high + 64 * top.vector + 4 * row, low_bits(c >> t.low_bits, t.high_bits) << top.shift);
  }
}

// Puts a row's 16 bytes in their places, whose low nibbles are the codes of columns 0..15 and whose high ones are those
// of 16..31.
inline void put_nibbles(const uint8_t* nibbles, int row, uint8_t* block) {
  for (int j = 0; j < 4; ++j) memcpy(block + 64 * j + 4 * row, nibbles + 4 * j, 4);
}

void get_codes(const FormatTraits& t, const uint8_t* block, int row, uint8_t* code) {
  const uint8_t* high = block + 64 * t.low_bits;
  for (int j = 0; j < 8; ++j) {
    const Place low = low_place(t.low_bits, j), top = high_place(t.high_bits, j);
    uint32_t c = low_bits(load32(block + 64 * low.vector + 4 * row) >> low.shift, t.low_bits);
    if (t.high_bits) {
      c |= low_bits(load32(high + 64 * top.vector + 4 * row) >> top.shift, t.high_bits) << t.low_bits;
    }
    memcpy(code + 4 * j, &c, 4);
  }
}

void put_pair(uint8_t* header, int block, int row, int a, int b) {
  header[kPairs + 16 * block + row] = static_cast<uint8_t>((a & 15) | (b & 15) << 4);
  header[kPairsHigh + 16 * (block / 2) + row] |= static_cast<uint8_t>((a >> 4 | b >> 4 << 2) << 4 * (block % 2));
}
void get_pair(const uint8_t* header, int block, int row, uint8_t* a, uint8_t* b) {
  const int low = header[kPairs + 16 * block + row];
  const int high = header[kPairsHigh + 16 * (block / 2) + row] >> 4 * (block % 2);
  *a = static_cast<uint8_t>((low & 15) | (high & 3) << 4);
  *b = static_cast<uint8_t>(low >> 4 | (high >> 2 & 3) << 4);
}

// The scales of one row of a format of blocks of 256.
void put_scales(const FormatTraits& t, const RawBlock& raw, int row, uint8_t* h) {
  store16(h + 2 * row, raw.d);
  if (t.has_min) store16(h + 32 + 2 * row, raw.min);
  for (int b = 0; b < kSuperBlocks; ++b) {
    switch (t.scales) {
      case Scales::kNone:
        break;
      case Scales::kNibbles:
        for (int g = 2 * b; g < 2 * b + 2; ++g) {
          h[kNibbleScales + 16 * g + row] = static_cast<uint8_t>(raw.scale[g] | raw.minimum[g] << 4);
        }
        break;
      case Scales::kPairs:
        if (t.has_min) {
          put_pair(h, b, row, raw.scale[b], raw.minimum[b]);
        } else {
          put_pair(h, b, row, raw.scale[2 * b], raw.scale[2 * b + 1]);
        }
        break;
      case Scales::kBytes:
        for (int g = 2 * b; g < 2 * b + 2; ++g) h[kByteScales + 16 * g + row] = raw.scale[g];
        break;
      case Scales::kSplit:
        h[kSplitScales + 16 * (b / 2) + row] |= static_cast<uint8_t>((raw.scale[b] & 15) << 4 * (b % 2));
        h[kSplitScalesHigh + 16 * (b / 4) + row] |= static_cast<uint8_t>(raw.scale[b] >> 4 << 2 * (b % 4));
        break;
    }
  }
}
void get_scales(const FormatTraits& t, const uint8_t* h, int row, RawBlock* raw) {
  raw->d = load16(h + 2 * row);
  raw->min = load16(h + 32 + 2 * row);
  for (int b = 0; b < kSuperBlocks; ++b) {
    switch (t.scales) {
      case Scales::kNone:
        break;
      case Scales::kNibbles:
        for (int g = 2 * b; g < 2 * b + 2; ++g) {
          raw->scale[g] = h[kNibbleScales + 16 * g + row] & 15;
          raw->minimum[g] = h[kNibbleScales + 16 * g + row] >> 4;
        }
        break;
      case Scales::kPairs:
        if (t.has_min) {
          get_pair(h, b, row, &raw->scale[b], &raw->minimum[b]);
        } else {
          get_pair(h, b, row, &raw->scale[2 * b], &raw->scale[2 * b + 1]);
        }
        break;
      case Scales::kBytes:
        for (int g = 2 * b; g < 2 * b + 2; ++g) raw->scale[g] = h[kByteScales + 16 * g + row];
        break;
      case Scales::kSplit: {
        const int low = h[kSplitScales + 16 * (b / 2) + row] >> 4 * (b % 2) & 15;
        const int high = h[kSplitScalesHigh + 16 * (b / 4) + row] >> 2 * (b % 4) & 3;
        raw->scale[b] = static_cast<uint8_t>(low | high << 4);
        break;
      }
    }
  }
}

template <class T>
void pack_floats(const uint8_t* rows, int64_t k, int count, uint8_t* panel) {
  for (int64_t i = 0; i < k; ++i) {
    for (int r = 0; r < count; ++r) {
      memcpy(panel + (i * kLanes + r) * sizeof(T), rows + (r * k + i) * sizeof(T), sizeof(T));
    }
  }
}

// `count` rows of the panel; the others stay zero.
template <Format format>
void pack_blocks(const uint8_t* rows, int64_t k, int count, uint8_t* panel) {
  constexpr FormatTraits t = traits_of(format);
  const FormatInfo& info = format_info(format);
  const int64_t row_bytes = k / info.block_values * info.block_bytes;
  const int per_block = info.block_values / kBlockColumns;  // blocks of 32 in a block of the file
  RawBlock raw;
  for (int64_t column = 0; column < k; column += kSuperColumns) {
    const int64_t left = (k - column) / kBlockColumns, blocks = left < kSuperBlocks ? left : kSuperBlocks;
    uint8_t* codes = panel + header_bytes(t, blocks);
    for (int r = 0; r < count; ++r) {
      const uint8_t* p = rows + r * row_bytes + column / info.block_values * info.block_bytes;
      for (int64_t b = 0; b < blocks; b += per_block, p += info.block_bytes) {
        if constexpr (!t.is_super && t.low_bits == 4 && t.high_bits == 0) {  // f16 d, f16 min, nibbles
          memcpy(panel + b * t.header_bytes + 2 * r, p, 2);
          if (t.has_min) memcpy(panel + b * t.header_bytes + 32 + 2 * r, p + 2, 2);
          put_nibbles(p + (t.has_min ? 4 : 2), r, codes + b * code_bytes(t));
          continue;
        }
        read_block(format, p, &raw);
        for (int i = 0; i < per_block; ++i) put_codes(t, raw.code + 32 * i, r, codes + (b + i) * code_bytes(t));
        if (t.is_super) {
          put_scales(t, raw, r, panel);
        } else {
          store16(panel + b * t.header_bytes + 2 * r, raw.d);
          if (t.has_min) store16(panel + b * t.header_bytes + 32 + 2 * r, raw.min);
        }
      }
    }
    panel += super_bytes(t, blocks);
  }
}

// `count` rows of k values into a zeroed panel.
template <Format format>
void pack_panel(const uint8_t* rows, int64_t k, int count, uint8_t* panel) {
  if constexpr (traits_of(format).low_bits != 0) {
    pack_blocks<format>(rows, k, count, panel);
  } else if constexpr (format_info(format).block_bytes == 4) {
    pack_floats<uint32_t>(rows, k, count, panel);
  } else {
    pack_floats<uint16_t>(rows, k, count, panel);
  }
}

using PackPanel = void (*)(const uint8_t* rows, int64_t k, int count, uint8_t* panel);
template <int... kFormat>
constexpr std::array<PackPanel, kFormatCount> make_packers(FormatNumbers<kFormat...>) {
  return {pack_panel<static_cast<Format>(kFormat)>...};
}
constexpr auto kPackers = make_packers(AllFormats());

int64_t bytes_of_panel(Format format, int64_t k) {
  return is_float(format) ? k * kLanes * format_info(format).block_bytes : panel_bytes(traits_of(format), k);
}

}  // namespace

size_t packed_bytes(Format format, int64_t n, int64_t k) {
  return static_cast<size_t>((n + kLanes - 1) / kLanes * bytes_of_panel(format, k));
}

void pack_panels(Format format, const uint8_t* rows, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end,
                 uint8_t* panels) {
  const FormatInfo& info = format_info(format);
  const int64_t row_bytes = k / info.block_values * info.block_bytes, panel_size = bytes_of_panel(format, k);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t left = n - p * kLanes;
    const int count = static_cast<int>(left < kLanes ? left : kLanes);
    const uint8_t* from = rows + (p - panel_begin) * kLanes * row_bytes;
    uint8_t* to = panels + (p - panel_begin) * panel_size;
    memset(to, 0, static_cast<size_t>(panel_size));
    kPackers[static_cast<size_t>(format)](from, k, count, to);
  }
}

void unpack_panel_row(Format format, const uint8_t* panels, int64_t k, int64_t row, float* x) {
  const uint8_t* panel = panels + row / kLanes * bytes_of_panel(format, k);
  const int r = static_cast<int>(row % kLanes);
  if (is_float(format)) {
    const int size = format_info(format).block_bytes;
    for (int64_t i = 0; i < k; ++i) dequantize_row(format, panel + (i * kLanes + r) * size, 1, x + i);
    return;
  }
  const FormatTraits& t = traits_of(format);
  RawBlock raw;
  for (int64_t column = 0; column < k; column += kSuperColumns) {
    const int64_t left = (k - column) / kBlockColumns, blocks = left < kSuperBlocks ? left : kSuperBlocks;
    const uint8_t* codes = panel + header_bytes(t, blocks);
    if (t.is_super) get_scales(t, panel, r, &raw);
    for (int64_t b = 0; b < blocks; ++b) {
      get_codes(t, codes + b * code_bytes(t), r, raw.code + (t.is_super ? kBlockColumns * b : 0));
      if (!t.is_super) {
        raw.d = load16(panel + b * t.header_bytes + 2 * r);
        if (t.has_min) raw.min = load16(panel + b * t.header_bytes + 32 + 2 * r);
        block_values(format, raw, x + column + kBlockColumns * b);
      }
    }
    if (t.is_super) block_values(format, raw, x + column);
    panel += super_bytes(t, blocks);
  }
}

}  // namespace glmlite
