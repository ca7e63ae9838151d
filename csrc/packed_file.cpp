#include "packed_file.h"

#include <algorithm>
#include <cstring>

#include "errors.h"

namespace glmlite {

namespace {

// Of how weights are packed: raised when csrc/cpu/pack.cpp, or what WeightPlan leaves between them, changes.
constexpr uint64_t kPackedVersion = 1;
constexpr char kMagic[8] = {'G', 'L', 'M', 'P', 'A', 'C', 'K', '\n'};

}  // namespace

std::array<uint8_t, PackedFile::kBegin> PackedFile::header(const Identity& identity) {
  std::array<uint8_t, kBegin> bytes{};
  uint8_t* at = std::copy(std::begin(kMagic), std::end(kMagic), bytes.data());
  for (const uint64_t number : {kPackedVersion, identity.layout, identity.bytes})
    for (int shift = 0; shift < 64; shift += 8) *at++ = static_cast<uint8_t>(number >> shift);  // little-endian
  std::copy(identity.key.begin(), identity.key.end(), at);
  return bytes;
}

PackedFile::PackedFile(const std::string& path, const Identity& identity, File::Reads reads)
    : identity_(identity), file_(path, reads) {
  if (file_.size() != kBegin + identity.bytes)
    throw FormatError(path + ": has " + std::to_string(file_.size()) + " bytes, expected " +
                      std::to_string(kBegin + identity.bytes) + ": packed weights of another model, or cut short");
  alignas(File::kDirectUnit) std::array<uint8_t, kBegin> found;
  file_.read(0, kBegin, found.data());
  if (found != header(identity))
    throw FormatError(path +
                      ": its header is not that of these weights: packed of another model, or in another layout");
}

}  // namespace glmlite
