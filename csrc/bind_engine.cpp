#include "bind.h"

namespace glmlite {
void bind_engine(pybind11::module_&) {}
}  // namespace glmlite
