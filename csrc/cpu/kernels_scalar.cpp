// Plain C++: what the other sets are compared with; runs anywhere.
#include "dot_scalar.h"
#include "features.h"
#include "kernels.h"
#include "scale_fma.h"
// The loops, over all that stands above.
#include "kernels.inc"

namespace glmlite {
extern const CpuKernels kScalar;
const CpuKernels kScalar = make_kernels("scalar", cpu_has_scalar);
}  // namespace glmlite
