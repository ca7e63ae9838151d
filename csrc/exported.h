// What `glmlite export` writes (glmlite/convert/export.py): a GGUF file that has a model's weights packed, in a tensor
// of bytes, and in its metadata the program that runs them. Tensors that are not packed (a prefix, factors of RoPE) are
// tensors of it as of any file.
#pragma once
#include <string>
#include <vector>

#include "gguf.h"
#include "op_spec.h"

namespace glmlite {

constexpr uint64_t kExportVersion = 1;  // of the keys; raised when a reader of an older one would go wrong

// Of an exported file: adds the packed tensors to `contents`, and takes the bytes that they lie in out of it. Does
// nothing to other files. Throws FormatError and FileError.
void add_packed(Gguf::Contents& contents, const std::string& where);

// The program of an exported file, as it was recorded; checked only for what `Program` does not check. Throws
// FormatError.
std::vector<OpSpec> exported_program(const Metadata& metadata);

}  // namespace glmlite
