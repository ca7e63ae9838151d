// Read and index a GGUF file (versions 2 and 3, little-endian). Knows the container, no model.
// Source of the layout: docs/gguf.md of ggml. All that a file says is checked against its bytes before it is used.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "blocks.h"
#include "errors.h"
#include "file.h"
#include "packed_file.h"

namespace glmlite {

// One tensor of a file. It stays valid while the Gguf lives and is not closed, or while its Contents are held.
struct Tensor {
  std::string name;  // UTF-8
  uint32_t type;     // GGUF's type number
  bool known;        // `format` is set: one of our formats
  Format format;
  std::vector<int64_t> shape;  // numpy order: the last is what lies side by side; 1 to 4 sizes, all above 0
  uint64_t bytes;              // exact, unless gguf_type_info lacks the type: then all up to the next tensor
  uint64_t offset;             // of the first in its file
  size_t part = 0;             // index of its file in Contents::parts
  const File* file = nullptr;  // null: it is packed, and `offset` tells only which come before it

  // The bytes [begin, begin + count) of the tensor. Throws FileError, and FormatError if the file has it packed.
  void read(uint64_t begin, uint64_t count, void* to) const;
};

// Whether `a` comes first where files are read from their beginning to their end.
inline bool lies_before(const Tensor& a, const Tensor& b) {
  return a.part != b.part ? a.part < b.part : a.offset < b.offset;
}

enum class ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

// A metadata value, copied out of the file.
struct Value {
  ValueType type;  // of the value, or of an array's elements
  bool is_array;
  std::string bytes;           // numbers as stored, a bool as a byte 0 or 1; a string; an array's strings end to end
  std::vector<uint64_t> ends;  // of an array's strings: where each ends in `bytes`
  std::vector<Value> items;    // of an array of arrays
};

using Metadata = std::vector<std::pair<std::string, Value>>;  // in file order; keys are UTF-8 and differ

const Value* lookup(const Metadata& metadata, const std::string& key);  // null: there is none

// The header of one file.
struct Header {
  uint32_t version;
  Metadata metadata;
  std::vector<Tensor> tensors;
};

// A file of another kind: it does not begin as GGUF files do.
struct NotGguf : FormatError {
  using FormatError::FormatError;
  std::string path;  // if it has one
};

// Gives the bytes [offset, offset + bytes) of a file.
using ReadBytes = std::function<void(uint64_t offset, uint64_t bytes, void* to)>;
// Asked for each kHeaderPiece of a header whether to go on; what it throws ends the reading.
using GoOn = std::function<void()>;
constexpr uint64_t kHeaderPiece = 256 << 10;

// The header of a file of `size` bytes. Reads each byte of it once, so that a file that changes meanwhile cannot get
// around the checks. Throws FormatError, its message beginning with `where`.
Header parse_gguf(const ReadBytes& read, uint64_t size, const std::string& where);

class Gguf {
 public:
  struct Contents {
    uint32_t version;
    std::vector<std::unique_ptr<const File>> parts;
    Metadata metadata;  // of the first part
    std::vector<Tensor> tensors;
    std::map<std::string, size_t> index;  // tensor name -> its place in `tensors`
    // Of a file that has its matrices packed (csrc/exported.h): those are among `tensors`, and lie here.
    std::shared_ptr<const PackedFile> packed;
    uint64_t bytes() const;        // of all parts
    void check_unchanged() const;  // of all parts, see File
  };

  // `path` may be any part of a split file; all parts are opened. Throws FormatError and FileError.
  explicit Gguf(const std::string& path, const GoOn& go_on = {});

  const Tensor* find(const std::string& name) const;  // null if there is none

  // What the file holds; the file stays open while this is held, whoever closes the Gguf. Throws std::invalid_argument
  // if it is closed already. Immutable: any number of threads may read.
  std::shared_ptr<const Contents> contents() const;
  void close();

  const std::string& where() const { return where_; }  // the path opened, as messages begin with it

 private:
  const std::string where_;
  mutable std::mutex mutex_;  // of contents_, the pointer
  std::shared_ptr<const Contents> contents_;
};

// Bytes of a tensor of a type that gguf_type_info has. Throws std::invalid_argument, saying what is wrong with its
// shape, or that they are more than `most`.
uint64_t tensor_bytes(const std::vector<int64_t>& shape, uint32_t type, uint64_t most);

// `text` as it can stand in a message: UTF-8 on one line, other bytes as \xNN, cut after `limit` bytes.
std::string printable(const std::string& text, size_t limit = 200);

}  // namespace glmlite
