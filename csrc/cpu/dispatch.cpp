#include <stdexcept>
#include <string>

#include "features.h"
#include "kernels.h"
#include "panel.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_M_ARM64)
#include <windows.h>
#endif

namespace glmlite {

extern const CpuKernels kScalar, kAvx2, kAvxVnni, kAvx512Vnni, kAvx512VnniAmd, kNeon;

static const CpuKernels* const kSets[] = {
#ifdef GLMLITE_HAS_AVX512VNNI_AMD
    &kAvx512VnniAmd,
#endif
#ifdef GLMLITE_HAS_AVX512VNNI
    &kAvx512Vnni,
#endif
#ifdef GLMLITE_HAS_AVXVNNI
    &kAvxVnni,
#endif
#ifdef GLMLITE_HAS_AVX2
    &kAvx2,
#endif
#ifdef GLMLITE_HAS_NEON
    &kNeon,
#endif
    &kScalar,
};

bool cpu_has_scalar() { return true; }

#if defined(__x86_64__) || defined(_M_X64)

namespace {

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
  return r;
}

// The register states that the operating system saves: bits 1, 2 = xmm, ymm; 5, 6, 7 = AVX-512's.
uint64_t saved_states() {
  if (!(cpuid(1, 0).c >> 27 & 1)) return 0;  // OSXSAVE
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
#endif
}

bool has(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

}  // namespace

bool cpu_has_avx2() {
  const uint32_t fma_avx_f16c = 1u << 12 | 1u << 28 | 1u << 29, avx2 = 1u << 5;
  return (saved_states() & 6) == 6 && has(cpuid(1, 0).c, fma_avx_f16c) && cpuid(0, 0).a >= 7 &&
         has(cpuid(7, 0).b, avx2);
}

bool cpu_has_avxvnni() { return cpu_has_avx2() && cpuid(7, 0).a >= 1 && has(cpuid(7, 1).a, 1u << 4); }

bool cpu_has_avx512vnni() {
  const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, vnni = 1u << 11;
  return cpu_has_avx2() && (saved_states() & 0xe6) == 0xe6 && has(cpuid(7, 0).b, f_dq_bw_vl) &&
         has(cpuid(7, 0).c, vnni);
}

bool cpu_is_amd() { return cpuid(0, 0).b == 0x68747541; }  // "Auth"enticAMD

#elif defined(__aarch64__) || defined(_M_ARM64)

bool cpu_has_neon() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & 1u << 20) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#elif defined(_M_ARM64)
  return IsProcessorFeaturePresent(43) != 0;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#else
  return false;
#endif
}

#endif

size_t linear_scratch_bytes(int64_t tokens) {
  return static_cast<size_t>((tokens < kMaxTokens ? tokens : kMaxTokens) * 2 * kLanes) * sizeof(float);
}

const CpuKernels* const* cpu_kernel_sets(int* count) {
  *count = static_cast<int>(sizeof kSets / sizeof *kSets);
  return kSets;
}

const CpuKernels& cpu_kernels(const char* name) {
  std::string built;
  for (const CpuKernels* set : kSets) {
    built += (built.empty() ? "" : ", ") + std::string(set->name);
    if (*name ? std::string(name) == set->name : set->supported() && set->suits()) {
      if (!set->supported())
        throw std::invalid_argument(std::string(name) + ": this machine cannot run that kernel set");
      return *set;
    }
  }
  throw std::invalid_argument(std::string(name) + ": no such kernel set; built: " + built);
}

}  // namespace glmlite
