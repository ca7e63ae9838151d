// The parts of the Python seam, one function per file. The modules _native and _cuda have Gguf and Engine each as their
// own (py::module_local), since one process may load both.
#pragma once
#include <pybind11/pybind11.h>

#include "engine.h"

namespace glmlite {
void bind_errors();                    // FormatError, Cancelled
void bind_gguf(pybind11::module_& m);  // Gguf
void bind_bpe(pybind11::module_& m);   // Bpe
// Paths cross the seam as os.fsencode and os.fsdecode have them: any bytes on Linux, UTF-8 on Windows.
std::string encode_path(const pybind11::object& path);
pybind11::object decode_path(const std::string& path);
// The program of `glmlite.placement.native_ops`.
std::vector<OpSpec> to_ops(const pybind11::sequence& ops);
void bind_engine(pybind11::module_& m, ExecutorFactory make);  // Engine, Sampler, Cancel
void bind_kernels(pybind11::module_& m);                       // kernel entry points for tests and benchmarks
void bind_rows(pybind11::module_& m);                          // those of rows and attention
}  // namespace glmlite
