// AVX-512 F, BW, VL, DQ and VNNI.
#include "dot_avx512vnni.h"
#include "features.h"
#include "kernels.h"
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kAvx512Vnni;
const CpuKernels kAvx512Vnni = make_kernels("avx512vnni", cpu_has_avx512vnni);
}  // namespace glmlite
