// GGUF files made by hand, and a folder to put them in.
#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "gguf.h"

namespace glmlite {

template <class T>
std::string raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
inline std::string text(const std::string& s) { return raw(uint64_t{s.size()}) + s; }
inline std::string value(const std::string& key, ValueType type, const std::string& bytes) {
  return text(key) + raw(type) + bytes;
}
inline std::string array(ValueType type, uint64_t count, const std::string& bytes) {
  return raw(type) + raw(count) + bytes;
}
// dims in GGUF's order
inline std::string tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
  std::string out = text(name) + raw(static_cast<uint32_t>(dims.size()));
  for (uint64_t size : dims) out += raw(size);
  return out + raw(type) + raw(offset);
}

struct Builder {
  uint32_t version = 3;
  std::vector<std::string> values, tensors;
  std::string data;
  size_t alignment = 32;

  std::string bytes() const {
    std::string out = "GGUF" + raw(version) + raw(uint64_t{tensors.size()}) + raw(uint64_t{values.size()});
    for (const std::string& part : values) out += part;
    for (const std::string& part : tensors) out += part;
    if (tensors.empty()) return out;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

// A folder that goes when the test ends.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::random_device random;
    path = std::filesystem::temp_directory_path() / ("glmlite-test-" + std::to_string(random()));
    std::filesystem::create_directory(path);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::filesystem::path file = path / std::filesystem::u8path(name);
    std::ofstream(file, std::ios::binary) << bytes;
    return file.u8string();
  }
};

}  // namespace glmlite
