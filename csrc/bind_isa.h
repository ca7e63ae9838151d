// Which kernel set a caller from Python means.
#pragma once
#include <string>

#include "cpu/kernels.h"

namespace glmlite {

// The set called `isa`; for "", the one that $GLMLITE_ISA names, or the best of this machine. Throws
// std::invalid_argument, with the names that are built in, if it is unknown or not supported here.
const CpuKernels& kernels_named(const std::string& isa);

}  // namespace glmlite
