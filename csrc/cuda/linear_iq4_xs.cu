#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kIQ4_XS>(const LinearArgs&, Stream);
