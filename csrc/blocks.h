// Storage formats, byte for byte what GGUF stores; shared by CPU, CUDA and tests.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace glmlite {

// What a tensor's elements are stored as, for the formats that the engine has kernels for. The numbers are our own;
// format_from_gguf maps GGUF's type numbers to them.
enum class Format : int {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS
};
constexpr int kFormatCount = 15;

// What blocks of 256 have for scales, which decides where a packed header has them (cpu/panel.h, cuda/pack.h).
enum class Scales {
  kNone,     // blocks of 32, or plain floats
  kNibbles,  // a scale and a minimum of four bits each
  kPairs,    // six bits: a scale and a minimum, or, without minimums, two scales
  kBytes,    // a signed byte
  kSplit     // six bits, four and two of them apart
};

// How a format's values follow from its fields (raw_block.h). A group of 16 or 32 values shares a scale and a minimum:
//   value = w * (c - zero) + m,  c = table ? kIQ4Values[code] : code (signed where low_bits is 8)
//   w = d and m = min, or, where is_super, w = d * (scale - scale_zero) and m = -(min * minimum), in f32.
// Formats without has_min have no m.
struct FormatTraits {
  bool is_super;     // blocks of 256 with scales of their own groups; otherwise blocks of 32
  int low_bits;      // of a code: 8, 4 or 2; 0 for float formats
  int high_bits;     // stored apart: 0, 1 or 2
  int zero;          // subtracted from a code
  int groups;        // of scales per 32 values: 1 or 2
  bool has_min;      //
  bool has_table;    // codes are indices of kIQ4Values
  int scale_zero;    // subtracted from a scale
  int header_bytes;  // of the scales of 16 rows in a CPU panel: per 256 values if is_super, else per 32
  Scales scales;
};

constexpr int kNoFloat = -1;

// A type that a GGUF file may hold.
struct FormatInfo {
  const char* name;  // as GGUF writes it
  uint32_t gguf_type;
  int block_values, block_bytes;
  int d, min;  // bytes of a block at which its f16 d and min stand, or kNoFloat; 0 and kNoFloat for a plain float
};

struct FormatRow {
  Format format;
  FormatInfo info;
  FormatTraits traits;
};

// The one place that has a format's name, number and sizes, in the order of Format. Python reads it.
inline constexpr FormatRow kFormats[] = {
    {Format::kF32, {"F32", 0, 1, 4, 0, kNoFloat}, {false, 0, 0, 0, 0, false, false, 0, 0, Scales::kNone}},
    {Format::kF16, {"F16", 1, 1, 2, 0, kNoFloat}, {false, 0, 0, 0, 0, false, false, 0, 0, Scales::kNone}},
    {Format::kBF16, {"BF16", 30, 1, 2, 0, kNoFloat}, {false, 0, 0, 0, 0, false, false, 0, 0, Scales::kNone}},
    {Format::kQ8_0, {"Q8_0", 8, 32, 34, 0, kNoFloat}, {false, 8, 0, 0, 1, false, false, 0, 32, Scales::kNone}},
    {Format::kQ4_0, {"Q4_0", 2, 32, 18, 0, kNoFloat}, {false, 4, 0, 8, 1, false, false, 0, 32, Scales::kNone}},
    {Format::kQ4_1, {"Q4_1", 3, 32, 20, 0, 2}, {false, 4, 0, 0, 1, true, false, 0, 64, Scales::kNone}},
    {Format::kQ5_0, {"Q5_0", 6, 32, 22, 0, kNoFloat}, {false, 4, 1, 16, 1, false, false, 0, 32, Scales::kNone}},
    {Format::kQ5_1, {"Q5_1", 7, 32, 24, 0, 2}, {false, 4, 1, 0, 1, true, false, 0, 64, Scales::kNone}},
    {Format::kQ2_K, {"Q2_K", 10, 256, 84, 80, 82}, {true, 2, 0, 0, 2, true, false, 0, 320, Scales::kNibbles}},
    {Format::kQ3_K, {"Q3_K", 11, 256, 110, 108, kNoFloat}, {true, 2, 1, 4, 2, false, false, 32, 256, Scales::kPairs}},
    {Format::kQ4_K, {"Q4_K", 12, 256, 144, 0, 2}, {true, 4, 0, 0, 1, true, false, 0, 256, Scales::kPairs}},
    {Format::kQ5_K, {"Q5_K", 13, 256, 176, 0, 2}, {true, 4, 1, 0, 1, true, false, 0, 256, Scales::kPairs}},
    {Format::kQ6_K, {"Q6_K", 14, 256, 210, 208, kNoFloat}, {true, 4, 2, 32, 2, false, false, 0, 320, Scales::kBytes}},
    {Format::kIQ4_NL, {"IQ4_NL", 20, 32, 18, 0, kNoFloat}, {false, 4, 0, 0, 1, false, true, 0, 32, Scales::kNone}},
    {Format::kIQ4_XS, {"IQ4_XS", 23, 256, 136, 0, kNoFloat}, {true, 4, 0, 0, 1, false, true, 32, 128, Scales::kSplit}},
};

constexpr bool formats_are_in_order() {
  for (int i = 0; i < kFormatCount; ++i) {
    const FormatRow& row = kFormats[i];
    if (row.format != static_cast<Format>(i) || row.traits.is_super != (row.traits.scales != Scales::kNone))
      return false;
  }
  return true;
}
static_assert(sizeof kFormats / sizeof kFormats[0] == kFormatCount, "a Format without a row, or a row without one");
static_assert(formats_are_in_order(), "the rows stand in the order of Format, and those of blocks of 256 have scales");

constexpr const FormatInfo& format_info(Format format) { return kFormats[static_cast<int>(format)].info; }
constexpr const FormatTraits& traits_of(Format format) { return kFormats[static_cast<int>(format)].traits; }

// The numbers of all formats, for tables that have an entry for each: FormatNumbers<kFormat...> of AllFormats().
template <int... kFormat>
using FormatNumbers = std::integer_sequence<int, kFormat...>;
using AllFormats = std::make_integer_sequence<int, kFormatCount>;

// The format with GGUF type number `type`; false if it is not one of ours.
bool format_from_gguf(uint32_t type, Format* format);

// Name and sizes of any GGUF type, ours or not; null for a number that is not known here.
const FormatInfo* gguf_type_info(uint32_t type);

// All of them, those that the engine has kernels for first, in the order of Format.
std::vector<FormatInfo> gguf_types();

// Tokens whose keys and values share a page of the KV cache.
constexpr int kPageTokens = 64;

// What keys and values are rounded to when they are cached.
enum class KvType : int { kF16, kQ8 };
constexpr int kKvTypeCount = 2;
// "f16" or "q8"; throws std::invalid_argument for another.
KvType kv_type_named(const char*);

}  // namespace glmlite
