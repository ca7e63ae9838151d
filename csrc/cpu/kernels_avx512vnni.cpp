// AVX-512 F, BW, VL, DQ and VNNI, for CPUs on which every vector operation is in the way of dot products: Intel's.
namespace glmlite {
namespace {
constexpr int kTileTokens = 7, kFewTokens = 8;
}
}  // namespace glmlite

#include "dot_avx512vnni.h"
#include "features.h"
#include "kernels.h"
#include "scale_fma.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kAvx512Vnni;
const CpuKernels kAvx512Vnni = make_kernels("avx512vnni", cpu_has_avx512vnni);
}  // namespace glmlite
