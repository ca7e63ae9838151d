// The same instructions as in kernels_avx512vnni.cpp, for CPUs that add and convert beside their dot products: AMD's.
namespace glmlite {
namespace {
constexpr int kTileTokens = 6, kFewTokens = 32;
}
}  // namespace glmlite

#include "dot_avx512vnni.h"
#include "features.h"
#include "kernels.h"
#include "scale_tables.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kAvx512VnniAmd;
const CpuKernels kAvx512VnniAmd = make_kernels("avx512vnni_amd", cpu_has_avx512vnni, cpu_is_amd);
}  // namespace glmlite
