#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kQ2_K>(const LinearArgs&, Stream);
