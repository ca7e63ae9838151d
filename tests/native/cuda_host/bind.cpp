// _cuda_host: the CUDA module on the CPU, for tests.
#include "cuda/bind.h"

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_cuda_host, m) {
  using glmlite::cuda_host::Options;
  glmlite::cuda::bind_kernels(m);
  py::class_<Options>(m, "Options")
      .def_readwrite("memory", &Options::memory)
      .def_readwrite("devices", &Options::devices)
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("major", &Options::major)
      .def_readwrite("minor", &Options::minor);
  m.def("options", &glmlite::cuda_host::options, py::return_value_policy::reference);
  m.def("launches", &glmlite::cuda_host::launches);
}
