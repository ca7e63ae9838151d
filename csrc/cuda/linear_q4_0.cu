#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kQ4_0>(const LinearArgs&, Stream);
