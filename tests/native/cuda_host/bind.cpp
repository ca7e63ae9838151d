// What tests may ask of the emulated machine, in the module _cuda built with GLMLITE_CUDA=EMULATED.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace glmlite::cuda_host {

void bind_machine(py::module_& m) {
  py::class_<Options>(m, "Options")
      .def_readwrite("memory", &Options::memory)
      .def_readwrite("devices", &Options::devices)
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("major", &Options::major)
      .def_readwrite("minor", &Options::minor)
      .def_readwrite("driver", &Options::driver)
      .def_readwrite("fail_after", &Options::fail_after)
      .def_readwrite("ahead_in_graphs", &Options::ahead_in_graphs);
  m.def("options", &options, py::return_value_policy::reference);
  m.def("launches", &launches, "Kernels run so far.");
  m.def("recover", &recover);
}

}  // namespace glmlite::cuda_host
