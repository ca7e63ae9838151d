// Storage formats, byte for byte what GGUF stores; shared by CPU, CUDA and tests.
#pragma once
#include <cstdint>
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

// Name as GGUF writes it, GGUF's type number, values per block, bytes per block.
struct FormatInfo {
  const char* name;
  uint32_t gguf_type;
  int block_values;
  int block_bytes;
};
const FormatInfo& format_info(Format);

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
