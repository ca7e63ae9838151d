#include "linear.cuh"

template void glmlite::cuda::launch_quantized<glmlite::Format::kIQ4_NL>(const LinearArgs&, Stream);
