#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kQ8_0>(const LinearArgs&, Stream);
