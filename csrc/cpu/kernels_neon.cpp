// ARMv8.2 NEON with the dot product instructions.
#include "dot_neon.h"
#include "features.h"
#include "kernels.h"
#include "scale_fma.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kNeon;
const CpuKernels kNeon = make_kernels("neon", cpu_has_neon);
}  // namespace glmlite
