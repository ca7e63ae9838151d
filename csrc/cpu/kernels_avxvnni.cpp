// AVX2, FMA, F16C and AVX-VNNI: the 256-bit integer dot products of CPUs without AVX-512.
#include "dot_avxvnni.h"
#include "features.h"
#include "kernels.h"
#include "scale_fma.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kAvxVnni;
const CpuKernels kAvxVnni = make_kernels("avxvnni", cpu_has_avxvnni);
}  // namespace glmlite
