#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kQ5_K>(const LinearArgs&, Stream);
