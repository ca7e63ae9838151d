#include "gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>

#include "errors.h"
#include "exported.h"

namespace glmlite {

namespace {

// Far above any real header (a vocabulary of 256,000 tokens with merges takes 15 MB), low enough that a hostile one,
// of a sparse file say, does not take the machine's memory.
constexpr uint64_t kMaxHeaderBytes = uint64_t{256} << 20;
constexpr int kMaxNesting = 4;

// Length of the UTF-8 sequence at text[at], 0 if there is none (RFC 3629: no surrogates, nothing overlong).
size_t utf8_length(const std::string& text, size_t at) {
  auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : uint8_t{0}; };
  uint8_t first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  bool surrogate = first == 0xED && second > 0x9F;
  bool beyond = first == 0xF4 && second > 0x8F;
  return overlong || surrogate || beyond ? 0 : length;
}

bool is_utf8(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string quoted(const std::string& text) { return "'" + printable(text) + "'"; }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text + ")";
}

// Bytes of a number or bool, 0 for what has no fixed size, and for what is no type at all.
uint64_t width_of(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

// Reads forward through a file's header, a piece at a time; whatever would pass the end is an error.
class Reader {
 public:
  Reader(const ReadBytes& read, uint64_t size, const std::string& where) : read_(read), size_(size), where_(where) {}

  // What is being read, for messages.
  std::string subject = "the header";

  uint64_t position() const { return position_; }

  [[noreturn]] void fail(const std::string& what) const { throw FormatError(where_ + ": " + subject + " " + what); }

  // Appends the next bytes to `to`.
  void take(uint64_t bytes, std::string* to) {
    if (bytes > size_ - position_) {
      fail("is cut short: it needs " + std::to_string(bytes) + " bytes at byte " + std::to_string(position_) +
           ", the file ends at " + std::to_string(size_));
    }
    if (bytes > kMaxHeaderBytes - position_) {
      fail("reaches beyond the first " + std::to_string(kMaxHeaderBytes >> 20) +
           " MiB of the file, where it should end");
    }
    while (bytes > 0) {
      if (position_ == piece_begin_ + piece_.size()) next_piece();
      const uint64_t at = position_ - piece_begin_, count = std::min(bytes, piece_.size() - at);
      to->append(piece_, static_cast<size_t>(at), static_cast<size_t>(count));
      position_ += count;
      bytes -= count;
    }
  }

  std::string take(uint64_t bytes) {
    std::string taken;
    take(bytes, &taken);
    return taken;
  }

  template <class T>
  T number() {
    const std::string bytes = take(sizeof(T));  // short enough to need no memory
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  // A count of things that take at least `least` bytes each.
  uint64_t count(uint64_t least, const char* things) {
    uint64_t count = number<uint64_t>();
    check_count(count, least, things);
    return count;
  }

  void check_count(uint64_t count, uint64_t least, const char* things) const {
    uint64_t most = (std::min(size_, kMaxHeaderBytes) - position_) / least;
    if (count > most) {
      fail("counts " + std::to_string(count) + " " + things + ", there is room for at most " + std::to_string(most));
    }
  }

  std::string string() { return take(count(1, "bytes of text")); }

  std::string name(const char* kind) {
    std::string text = string();
    if (!is_utf8(text)) fail(std::string("has the ") + kind + " " + quoted(text) + ", expected UTF-8");
    return text;
  }

  Value value() {
    ValueType type = value_type();
    if (type == ValueType::kArray) return array(1);
    Value value{type, false, {}, {}, {}};
    value.bytes = type == ValueType::kString ? string() : numbers(type, 1);
    return value;
  }

 private:
  ValueType value_type() {
    uint32_t type = number<uint32_t>();
    if (type > static_cast<uint32_t>(ValueType::kFloat64)) {
      fail("has the value type " + std::to_string(type) + ", expected 0 to 12");
    }
    return static_cast<ValueType>(type);
  }

  std::string numbers(ValueType type, uint64_t count) {
    std::string numbers = take(count * width_of(type));  // the caller has checked count against the file
    if (type == ValueType::kBool) {
      for (char byte : numbers) {
        if (byte != 0 && byte != 1) fail("holds a bool of byte " + std::to_string(byte & 0xFF) + ", expected 0 or 1");
      }
    }
    return numbers;
  }

  Value array(int depth) {
    if (depth > kMaxNesting) fail("nests arrays more than " + std::to_string(kMaxNesting) + " deep");
    Value array{value_type(), true, {}, {}, {}};
    if (array.type == ValueType::kString) {
      uint64_t items = count(sizeof(uint64_t), "strings");
      array.ends.reserve(static_cast<size_t>(items));
      for (uint64_t i = 0; i < items; ++i) {
        take(count(1, "bytes of text"), &array.bytes);
        array.ends.push_back(array.bytes.size());
      }
    } else if (array.type == ValueType::kArray) {
      uint64_t items = count(sizeof(uint32_t) + sizeof(uint64_t), "arrays");
      for (uint64_t i = 0; i < items; ++i) array.items.push_back(this->array(depth + 1));
    } else {
      array.bytes = numbers(array.type, count(width_of(array.type), "numbers"));
    }
    return array;
  }

  void next_piece() {
    piece_begin_ += piece_.size();
    piece_.resize(static_cast<size_t>(std::min(kHeaderPiece, size_ - piece_begin_)));
    read_(piece_begin_, piece_.size(), &piece_[0]);
  }

  const ReadBytes& read_;
  const uint64_t size_;
  const std::string& where_;
  uint64_t position_ = 0;
  std::string piece_;  // of the file's bytes, from piece_begin_ on
  uint64_t piece_begin_ = 0;
};

uint32_t read_version(Reader& reader, uint64_t size, const std::string& where) {
  if (size == 0) reader.fail("is missing: the file is empty, expected a GGUF file; copy or download it again");
  const std::string magic = reader.take(4);
  if (magic != "GGUF") throw NotGguf(where + ": the header begins with " + quoted(magic) + ", expected 'GGUF'");
  uint32_t version = reader.number<uint32_t>();
  if (version != 0 && (version & 0xFFFF) == 0) { reader.fail("is big-endian, expected a little-endian GGUF file"); }
  if (version != 2 && version != 3) reader.fail("is of GGUF version " + std::to_string(version) + ", expected 2 or 3");
  return version;
}

uint32_t read_alignment(Reader& reader, const Metadata& metadata) {
  const Value* value = lookup(metadata, "general.alignment");
  if (value == nullptr) return 32;
  reader.subject = "metadata 'general.alignment'";
  if (value->is_array || value->type != ValueType::kUint32) reader.fail("is of another type than uint32");
  uint32_t alignment;
  std::memcpy(&alignment, value->bytes.data(), sizeof alignment);
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    reader.fail("is " + std::to_string(alignment) + ", expected a power of two");
  }
  return alignment;
}

// Everything of a tensor but where its data lies: `offset` is still that in the data section, `bytes` is 0 if the type
// is not known. file_bytes bounds what any tensor can take.
Tensor read_tensor(Reader& reader, uint64_t file_bytes) {
  Tensor tensor{};
  tensor.name = reader.name("name");
  reader.subject = "tensor " + quoted(tensor.name);
  uint32_t dims = reader.number<uint32_t>();
  if (dims < 1 || dims > 4) reader.fail("has " + std::to_string(dims) + " dimensions, expected 1 to 4");
  // GGUF's order is the reverse of numpy's.
  tensor.shape.resize(dims);
  for (uint32_t i = dims; i-- > 0;) {
    uint64_t size = reader.number<uint64_t>();
    if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      reader.fail("has a dimension of " + std::to_string(size) + ", expected 1 to 2^63 - 1");
    }
    tensor.shape[i] = static_cast<int64_t>(size);
  }
  tensor.type = reader.number<uint32_t>();
  tensor.known = format_from_gguf(tensor.type, &tensor.format);
  tensor.offset = reader.number<uint64_t>();
  if (gguf_type_info(tensor.type) != nullptr) {
    try {
      tensor.bytes = tensor_bytes(tensor.shape, tensor.type, file_bytes);
    } catch (const std::invalid_argument& error) { reader.fail(error.what()); }
  }
  return tensor;
}

// Gives each tensor its place in the file: aligned, inside, over no other.
void place_tensors(Reader& reader, uint64_t size, uint32_t alignment, std::vector<Tensor>* tensors) {
  if (tensors->empty()) return;
  uint64_t start = (reader.position() + alignment - 1) / alignment * alignment;
  std::vector<Tensor*> by_offset;
  for (Tensor& tensor : *tensors) {
    reader.subject = "tensor " + quoted(tensor.name);
    if (tensor.offset % alignment != 0) {
      reader.fail("has the offset " + std::to_string(tensor.offset) + ", expected a multiple of " +
                  std::to_string(alignment));
    }
    // A tensor of unknown size has at least a byte.
    uint64_t least = std::max<uint64_t>(tensor.bytes, 1);
    if (start > size || tensor.offset > size - start || least > size - start - tensor.offset) {
      reader.fail("has " + std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(tensor.offset) +
                  " of the data, which begins at byte " + std::to_string(start) + ": the file ends at " +
                  std::to_string(size));
    }
    tensor.offset += start;
    by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(), [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
  for (size_t i = 0; i < by_offset.size(); ++i) {
    Tensor& tensor = *by_offset[i];
    const Tensor* next = i + 1 < by_offset.size() ? by_offset[i + 1] : nullptr;
    uint64_t room = (next != nullptr ? next->offset : size) - tensor.offset;
    if (tensor.bytes > room || room == 0) {
      reader.subject = "tensor " + quoted(tensor.name);
      reader.fail("overlaps tensor " + quoted(next->name) + " at byte " + std::to_string(next->offset));
    }
    if (tensor.bytes == 0) tensor.bytes = room;
  }
}

// An unsigned integer of the metadata, `absent` if there is none.
uint64_t read_unsigned(const Metadata& metadata, const std::string& key, uint64_t absent, const std::string& where) {
  const Value* value = lookup(metadata, key);
  if (value == nullptr) return absent;
  uint64_t number = 0;
  bool is_integer = value->type != ValueType::kFloat32 && value->type != ValueType::kFloat64 &&
                    value->type != ValueType::kString && value->type != ValueType::kArray;
  if (value->is_array || !is_integer) throw FormatError(where + ": metadata '" + key + "' is not an integer");
  std::memcpy(&number, value->bytes.data(), value->bytes.size());
  return number;
}

// What a part's name ends in. `no` counts from 0, names count from 1.
std::string part_suffix(uint64_t no, uint64_t count) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05llu-of-%05llu.gguf", static_cast<unsigned long long>(no + 1),
                static_cast<unsigned long long>(count));
  return text;
}

struct Part {
  Part(const std::string& path, const GoOn& go_on)
      : file(std::make_unique<const File>(path)),
        where(printable(path, path.size())),
        header(read_header(go_on)),
        no(read_unsigned(header.metadata, "split.no", 0, where)),
        count(read_unsigned(header.metadata, "split.count", 1, where)) {}

  std::unique_ptr<const File> file;
  std::string where;  // for messages
  Header header;
  uint64_t no, count;

 private:
  Header read_header(const GoOn& go_on) const {
    const auto read = [&](uint64_t offset, uint64_t bytes, void* to) {
      if (go_on) go_on();
      file->read(offset, bytes, to);
    };
    try {
      return parse_gguf(read, file->size(), where);
    } catch (NotGguf& error) {
      error.path = file->path();
      throw;
    }
  }
};

// The file at `path`, with the other parts if it is one of several.
std::vector<Part> open_parts(const std::string& path, const GoOn& go_on) {
  std::vector<Part> parts;
  Part first(path, go_on);
  uint64_t no = first.no, count = first.count;
  if (count <= 1) {
    parts.push_back(std::move(first));
    return parts;
  }
  std::string suffix = part_suffix(no, count);
  if (no >= count || count > 99999) {
    throw FormatError(first.where + ": 'split.no' is " + std::to_string(no) + " of 'split.count' " +
                      std::to_string(count) + ", expected 0 to one less than the count, which is at most 99999");
  }
  if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) {
    throw FormatError(first.where + ": the file is part " + std::to_string(no + 1) + " of " + std::to_string(count) +
                      ", expected a name that ends in '" + suffix + "', by which the other parts are found");
  }
  std::string stem = path.substr(0, path.size() - suffix.size());
  for (uint64_t i = 0; i < count; ++i) {
    parts.push_back(i == no ? std::move(first) : Part(stem + part_suffix(i, count), go_on));
    const Part& part = parts.back();
    if (part.no != i || part.count != count) {
      throw FormatError(part.where + ": 'split.no' is " + std::to_string(part.no) + " of 'split.count' " +
                        std::to_string(part.count) + ", expected " + std::to_string(i) + " of " +
                        std::to_string(count));
    }
  }
  return parts;
}

}  // namespace

std::string printable(const std::string& text, size_t limit) {
  static const char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (at >= limit) return out + "...";
    uint8_t byte = static_cast<uint8_t>(text[at]);
    size_t length = utf8_length(text, at);
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
      ++at;
    } else {
      out.append(text, at, length);
      at += length;
    }
  }
  return out;
}

const Value* lookup(const Metadata& metadata, const std::string& key) {
  for (const auto& entry : metadata) {
    if (entry.first == key) return &entry.second;
  }
  return nullptr;
}

uint64_t tensor_bytes(const std::vector<int64_t>& shape, uint32_t type, uint64_t most) {
  const FormatInfo* info = gguf_type_info(type);
  const auto columns = static_cast<uint64_t>(shape.back()), block = static_cast<uint64_t>(info->block_values);
  const std::string what = "is " + shape_text(shape) + " of " + info->name + ", ";
  if (columns % block != 0)
    throw std::invalid_argument(what + "expected rows of a multiple of " + std::to_string(block) + " values");
  auto bytes = static_cast<uint64_t>(info->block_bytes);
  const auto multiply = [&](uint64_t factor) {
    if (factor > most / bytes)
      throw std::invalid_argument(what + "more than the whole file of " + std::to_string(most) + " bytes");
    bytes *= factor;
  };
  multiply(columns / block);
  for (size_t i = 0; i + 1 < shape.size(); ++i) multiply(static_cast<uint64_t>(shape[i]));
  return bytes;
}

void Tensor::read(uint64_t begin, uint64_t count, void* to) const {
  if (file == nullptr) throw FormatError("'" + printable(name) + "' is packed, and not there as it was stored");
  file->read(offset + begin, count, to);
}

Header parse_gguf(const ReadBytes& read, uint64_t size, const std::string& where) {
  Reader reader(read, size, where);
  Header header{};
  header.version = read_version(reader, size, where);
  uint64_t tensor_count = reader.number<uint64_t>();
  uint64_t value_count = reader.number<uint64_t>();
  // The least that an entry takes: name length, dimension count, a dimension, type, offset; key length, type, a byte.
  reader.check_count(tensor_count, 8 + 4 + 8 + 4 + 8, "tensors");
  reader.check_count(value_count, 8 + 4 + 1, "metadata values");

  std::set<std::string> names;
  for (uint64_t i = 0; i < value_count; ++i) {
    reader.subject = "metadata value " + std::to_string(i);
    std::string key = reader.name("key");
    reader.subject = "metadata " + quoted(key);
    if (!names.insert(key).second) reader.fail("is there twice");
    Value value = reader.value();
    header.metadata.emplace_back(std::move(key), std::move(value));
  }
  names.clear();
  for (uint64_t i = 0; i < tensor_count; ++i) {
    reader.subject = "tensor " + std::to_string(i);
    header.tensors.push_back(read_tensor(reader, size));
    if (!names.insert(header.tensors.back().name).second) reader.fail("is there twice");
  }
  place_tensors(reader, size, read_alignment(reader, header.metadata), &header.tensors);
  return header;
}

uint64_t Gguf::Contents::bytes() const {
  uint64_t bytes = 0;
  for (const auto& part : parts) bytes += part->size();
  return bytes;
}

void Gguf::Contents::check_unchanged() const {
  for (const auto& part : parts) part->check_unchanged();
}

Gguf::Gguf(const std::string& path, const GoOn& go_on) : where_(printable(path, path.size())) {
  std::vector<Part> parts = open_parts(path, go_on);
  auto contents = std::make_shared<Contents>();
  contents->version = parts[0].header.version;
  contents->metadata = std::move(parts[0].header.metadata);
  for (Part& part : parts) {
    for (Tensor& tensor : part.header.tensors) {
      tensor.part = contents->parts.size();
      tensor.file = part.file.get();
      if (!contents->index.emplace(tensor.name, contents->tensors.size()).second) {
        throw FormatError(part.where + ": tensor " + quoted(tensor.name) + " is in another part, too");
      }
      contents->tensors.push_back(std::move(tensor));
    }
    contents->parts.push_back(std::move(part.file));
  }
  const uint64_t total = contents->tensors.size();
  const uint64_t expected = read_unsigned(contents->metadata, "split.tensors.count", total, parts[0].where);
  if (total != expected) {
    throw FormatError(parts[0].where + ": the parts have " + std::to_string(total) +
                      " tensors, 'split.tensors.count' is " + std::to_string(expected));
  }
  add_packed(*contents, where_);
  contents_ = std::move(contents);
}

std::shared_ptr<const Gguf::Contents> Gguf::contents() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (contents_ == nullptr) throw std::invalid_argument(where_ + ": the file is closed");
  return contents_;
}

const Tensor* Gguf::find(const std::string& name) const {
  std::shared_ptr<const Contents> all = contents();
  auto entry = all->index.find(name);
  return entry == all->index.end() ? nullptr : &all->tensors[entry->second];
}

void Gguf::close() {
  std::shared_ptr<const Contents> last;  // closed after the lock is let go
  std::lock_guard<std::mutex> lock(mutex_);
  last.swap(contents_);
}

}  // namespace glmlite
