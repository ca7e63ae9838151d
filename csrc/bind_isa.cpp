#include "bind_isa.h"

#include <cstdlib>
#include <stdexcept>

namespace glmlite {

const CpuKernels& kernels_named(const std::string& isa) {
  if (!isa.empty()) return cpu_kernels(isa.c_str());
  const char* name = std::getenv("GLMLITE_ISA");
  if (!name || !*name) return cpu_kernels("");
  try {
    return cpu_kernels(name);
  } catch (const std::invalid_argument& e) { throw std::invalid_argument(std::string("GLMLITE_ISA=") + e.what()); }
}

}  // namespace glmlite
