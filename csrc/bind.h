// The parts of the Python seam, one function per file.
#pragma once
#include <pybind11/pybind11.h>

namespace glmlite {
void bind_gguf(pybind11::module_& m);     // Gguf
void bind_engine(pybind11::module_& m);   // Engine, Sampler, Cancel
void bind_kernels(pybind11::module_& m);  // kernel entry points for tests and benchmarks
void bind_rows(pybind11::module_& m);     // those of rows and attention
}  // namespace glmlite
