// The Python module `glmlite._native`.
#include "bind.h"

PYBIND11_MODULE(_native, m) {
  m.attr("__version__") = GLMLITE_VERSION;
  glmlite::bind_errors();
  glmlite::bind_gguf(m);
  glmlite::bind_bpe(m);
  glmlite::bind_engine(m, glmlite::make_cpu_executor);
  glmlite::bind_kernels(m);
  glmlite::bind_rows(m);
}
