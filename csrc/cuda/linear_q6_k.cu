#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kQ6_K>(const LinearArgs&, Stream);
