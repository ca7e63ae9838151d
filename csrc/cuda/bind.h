// The parts of the CUDA module's Python seam.
#pragma once
#include <pybind11/pybind11.h>

namespace glmlite::cuda {

// Kernel entry points for tests: arrays go to the device and come back.
void bind_kernels(pybind11::module_&);

}  // namespace glmlite::cuda
