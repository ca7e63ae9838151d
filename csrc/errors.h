// The exceptions that cross the seam. Bad arguments are std::invalid_argument, the machine's faults std::runtime_error
// and std::bad_alloc; bind.cpp turns each into its Python counterpart.
#pragma once
#include <stdexcept>

namespace glmlite {

// A file is not what it should be. -> glmlite.errors.FormatError
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller set the cancel flag; nothing was changed. -> glmlite.errors.Cancelled
struct Cancelled : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace glmlite
