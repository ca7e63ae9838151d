#include "bind.h"

namespace glmlite {
void bind_gguf(pybind11::module_&) {}
}  // namespace glmlite
