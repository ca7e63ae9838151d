// A program's weights on disk as a device keeps them: a header of a page, then what a WeightPlan lays out. Made once,
// then mapped or read by any number of processes. Experts begin on pages, so that they can be read past the system's
// cache.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "file.h"

namespace glmlite {

class PackedFile {
 public:
  static constexpr uint64_t kBegin = 4096;  // where the weights begin

  // What two of them must agree in to be of the same weights. Layouts of a program change with its ops; how the weights
  // of one are packed changes with kPackedVersion.
  struct Identity {
    std::array<uint8_t, 32> key{};  // of what the tensors hold
    uint64_t layout = 0;            // WeightPlan::fingerprint
    uint64_t bytes = 0;             // of weights
    bool operator==(const Identity& o) const { return key == o.key && layout == o.layout && bytes == o.bytes; }
  };

  // Throws FileError if it cannot be read, and FormatError if it is of other weights, or damaged.
  PackedFile(const std::string& path, const Identity& identity, File::Reads reads = File::Reads::kCached);

  // What stands before the weights.
  static std::array<uint8_t, kBegin> header(const Identity& identity);

  const File& file() const { return file_; }
  const Identity& identity() const { return identity_; }

 private:
  const Identity identity_;
  const File file_;
};

}  // namespace glmlite
