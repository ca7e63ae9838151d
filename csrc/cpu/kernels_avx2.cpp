// AVX2, FMA, F16C.
#include "dot_avx2.h"
#include "features.h"
#include "kernels.h"
#include "scale_fma.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kAvx2;
const CpuKernels kAvx2 = make_kernels("avx2", cpu_has_avx2);
}  // namespace glmlite
