// Compares every kernel set that this machine runs with `scalar`, bit for bit, over random rows of every format; and
// the size of packed tensors with their size in a file. Needs no Python, so it also runs under an emulator.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "blocks.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

using namespace glmlite;

namespace {

int failures = 0;
std::mt19937 rng(1);

void check(bool ok, const char* what, const char* isa, Format format, int64_t n, int64_t k, int64_t tokens) {
  if (ok) return;
  ++failures;
  std::printf("%s: %s %s n=%d k=%d T=%d\n", what, isa, format_info(format).name, static_cast<int>(n),
              static_cast<int>(k), static_cast<int>(tokens));
}

// Offsets of the f16 fields of a block, -1 where there is none.
struct Halves {
  int d, min;
};
Halves halves(Format format) {
  switch (format) {
    case Format::kQ4_1:
    case Format::kQ5_1:
    case Format::kQ4_K:
    case Format::kQ5_K:
      return {0, 2};
    case Format::kQ2_K:
      return {80, 82};
    case Format::kQ3_K:
      return {108, -1};
    case Format::kQ6_K:
      return {208, -1};
    default:
      return {0, -1};
  }
}

std::vector<uint8_t> random_rows(Format format, int64_t n, int64_t k) {
  const FormatInfo& info = format_info(format);
  std::vector<uint8_t> rows(static_cast<size_t>(n * k / info.block_values * info.block_bytes));
  for (uint8_t& b : rows) b = static_cast<uint8_t>(rng());
  for (size_t i = 0; i < rows.size(); i += info.block_bytes) {
    // Exponents of scales and of float weights: about 1, never infinite.
    auto tame = [&](int at) { rows[i + at + 1] = static_cast<uint8_t>((rows[i + at + 1] & 0x83) | 0x38); };
    if (format == Format::kF32) {
      tame(2);
    } else {
      tame(halves(format).d);
      if (halves(format).min >= 0) tame(halves(format).min);
    }
  }
  return rows;
}

template <class T>
T* align(std::vector<T>& v) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
}

std::vector<uint8_t> quantize(const CpuKernels& kernels, const std::vector<float>& x, int64_t tokens, int64_t k) {
  std::vector<uint8_t> act(act_bytes(k, tokens) + 64);
  for (int64_t t = 0; t < tokens; ++t) kernels.quantize(&x[t * k], k, t, tokens, align(act));
  return act;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void compare(const CpuKernels& kernels, const CpuKernels& scalar, Format format, int64_t n, int64_t k, int64_t tokens) {
  const std::vector<uint8_t> rows = random_rows(format, n, k);
  std::vector<float> x(tokens * k);
  for (float& v : x) v = std::normal_distribution<float>()(rng);
  // Sets multiply different numbers of tokens at once, so only the rows of a single token lie the same everywhere.
  std::vector<uint8_t> one = quantize(kernels, x, 1, k), other = quantize(scalar, x, 1, k);
  check(std::memcmp(align(one), align(other), act_bytes(k, 1)) == 0, "quantize differs", kernels.name, format, n, k, 1);
  std::vector<uint8_t> a = quantize(kernels, x, tokens, k), b = quantize(scalar, x, tokens, k);

  const int64_t panels = (n + kLanes - 1) / kLanes;
  std::vector<uint8_t> packed(packed_bytes(format, n, k) + 64), scratch(linear_scratch_bytes(tokens) + 64);
  pack_panels(format, rows.data(), n, k, 0, panels, align(packed));
  std::vector<float> got(tokens * n, -1), want(tokens * n, -2);
  LinearArgs args{align(packed), k, n, 0, panels, {x.data(), align(a)}, tokens, got.data(), n, align(scratch)};
  kernels.linear[static_cast<int>(format)](args);
  args.y = want.data();
  args.act.blocks = align(b);
  scalar.linear[static_cast<int>(format)](args);
  check(same(got, want), "linear differs", kernels.name, format, n, k, tokens);
}

}  // namespace

int main() {
  int count;
  const CpuKernels* const* sets = cpu_kernel_sets(&count);
  const CpuKernels& scalar = *sets[count - 1];
  for (int f = 0; f < kFormatCount; ++f) {
    const Format format = static_cast<Format>(f);
    const FormatInfo& info = format_info(format);
    for (int i = 0; i < count; ++i) {
      if (!sets[i]->supported()) continue;
      for (int64_t tokens : {1, 2, 3, 4, 5, 13, 33}) {
        for (int64_t n : {1, 17, 33}) compare(*sets[i], scalar, format, n, 512, tokens);
        if (info.block_values <= 32) compare(*sets[i], scalar, format, 18, 864, tokens);
      }
    }
    const double file = 4096.0 / info.block_values * info.block_bytes * 4096;
    check(packed_bytes(format, 4096, 4096) <= 1.04 * file, "packed tensor too large", "", format, 4096, 4096, 0);
  }
  for (int i = 0; i < count; ++i)
    std::printf("%s: %s\n", sets[i]->name, sets[i]->supported() ? "checked" : "not supported");
  std::printf(failures ? "%d failures\n" : "all equal\n", failures);
  return failures != 0;
}
