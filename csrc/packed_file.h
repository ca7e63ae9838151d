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
  // Of how weights are packed: raised when csrc/cpu/pack.cpp, or what WeightPlan leaves between them, changes. All
  // instruction sets read the same.
  static constexpr uint64_t kVersion = 1;
  static constexpr uint64_t kHeaderBytes = 4096;  // and weights begin at a multiple of it

  // What two of them must agree in to be of the same weights. Layouts of a program change with its ops; how the weights
  // of one are packed changes with kVersion.
  struct Identity {
    std::array<uint8_t, 32> key{};  // of what the tensors hold
    uint64_t layout = 0;            // WeightPlan::fingerprint
    uint64_t bytes = 0;             // of weights
    bool operator==(const Identity& o) const { return key == o.key && layout == o.layout && bytes == o.bytes; }
  };

  // Throws FileError if it cannot be read, and FormatError if it is of other weights, or damaged.
  PackedFile(const std::string& path, const Identity& identity, File::Reads reads = File::Reads::kCached);
  // Weights that lie at `begin` in a file of another kind, which says what they are.
  PackedFile(const std::string& path, const Identity& identity, uint64_t begin);
  // The same weights, read in another way.
  PackedFile(const PackedFile& same, File::Reads reads);

  // What stands before the weights.
  static std::array<uint8_t, kHeaderBytes> header(const Identity& identity);

  const File& file() const { return file_; }
  uint64_t begin() const { return begin_; }
  const Identity& identity() const { return identity_; }

 private:
  const Identity identity_;
  const uint64_t begin_;
  const File file_;
};

}  // namespace glmlite
