#include "packed_file.h"

#include <algorithm>
#include <cstring>

#include "errors.h"

namespace glmlite {

namespace {

constexpr char kMagic[8] = {'G', 'L', 'M', 'P', 'A', 'C', 'K', '\n'};

}  // namespace

std::array<uint8_t, PackedFile::kHeaderBytes> PackedFile::header(const Identity& identity) {
  std::array<uint8_t, kHeaderBytes> bytes{};
  uint8_t* at = std::copy(std::begin(kMagic), std::end(kMagic), bytes.data());
  for (const uint64_t number : {kVersion, identity.layout, identity.bytes})
    for (int shift = 0; shift < 64; shift += 8) *at++ = static_cast<uint8_t>(number >> shift);  // little-endian
  std::copy(identity.key.begin(), identity.key.end(), at);
  return bytes;
}

PackedFile::PackedFile(const std::string& path, const Identity& identity, File::Reads reads)
    : identity_(identity), begin_(kHeaderBytes), file_(path, reads) {
  if (file_.size() != kHeaderBytes + identity.bytes)
    throw FormatError(path + ": has " + std::to_string(file_.size()) + " bytes, expected " +
                      std::to_string(kHeaderBytes + identity.bytes) +
                      ": packed weights of another model, or cut short");
  alignas(File::kDirectUnit) std::array<uint8_t, kHeaderBytes> found;
  file_.read(0, kHeaderBytes, found.data());
  if (found != header(identity))
    throw FormatError(path +
                      ": its header is not that of these weights: packed of another model, or in another layout");
}

PackedFile::PackedFile(const std::string& path, const Identity& identity, uint64_t begin)
    : identity_(identity), begin_(begin), file_(path) {
  if (begin % kHeaderBytes != 0 || begin > file_.size() || file_.size() - begin < identity.bytes)
    throw FormatError(path + ": packed weights at byte " + std::to_string(begin) + ", expected " +
                      std::to_string(identity.bytes) + " bytes at a multiple of " + std::to_string(kHeaderBytes));
}

PackedFile::PackedFile(const PackedFile& same, File::Reads reads)
    : identity_(same.identity_), begin_(same.begin_), file_(same.file_.path(), reads) {
  same.file_.check_same(file_);
}

}  // namespace glmlite
