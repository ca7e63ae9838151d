// The Python module `glmlite._native`.
#include "bind.h"

#include "errors.h"

namespace py = pybind11;

namespace {

void raise_as(const char* name, const char* what) {
  py::object type = py::module_::import("glmlite.errors").attr(name);
  PyErr_SetString(type.ptr(), what);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.attr("__version__") = GLMLITE_VERSION;
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const glmlite::FormatError& e) { raise_as("FormatError", e.what()); } catch (const glmlite::Cancelled& e) {
      raise_as("Cancelled", e.what());
    }
  });
  glmlite::bind_gguf(m);
  glmlite::bind_engine(m);
  glmlite::bind_kernels(m);
  glmlite::bind_rows(m);
}
