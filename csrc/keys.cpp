#include "keys.h"

#include <cstring>

namespace glmlite {

namespace {

template <class T>
constexpr ValueType type_of();
template <>
constexpr ValueType type_of<uint8_t>() {
  return ValueType::kUint8;
}
template <>
constexpr ValueType type_of<uint32_t>() {
  return ValueType::kUint32;
}
template <>
constexpr ValueType type_of<int32_t>() {
  return ValueType::kInt32;
}
template <>
constexpr ValueType type_of<uint64_t>() {
  return ValueType::kUint64;
}
template <>
constexpr ValueType type_of<float>() {
  return ValueType::kFloat32;
}
template <>
constexpr ValueType type_of<double>() {
  return ValueType::kFloat64;
}

const char* name_of(ValueType type) {
  static const char* const kNames[] = {"uint8",  "int8", "uint16", "int16",  "uint32", "int32",  "float32",
                                       "a bool", "text", "arrays", "uint64", "int64",  "float64"};
  return kNames[static_cast<uint32_t>(type)];
}

[[noreturn]] void wrong(const std::string& key, const Value& value, const std::string& expected) {
  throw FormatError(key + ": is " + (value.is_array ? "an array of " : "") + name_of(value.type) + ", expected " +
                    expected);
}

}  // namespace

const Value& Keys::find(const std::string& key) const {
  const Value* value = lookup(metadata_, key);
  if (value == nullptr) throw FormatError(key + ": is missing");
  return *value;
}

uint64_t Keys::integer(const std::string& key, uint64_t most) const {
  const Value& value = find(key);
  uint64_t number = 0;
  if (value.is_array || value.type == ValueType::kFloat32 || value.type == ValueType::kFloat64 ||
      value.type == ValueType::kString || value.type == ValueType::kBool)
    wrong(key, value, "an integer");
  std::memcpy(&number, value.bytes.data(), value.bytes.size());
  if (number > most)
    throw FormatError(key + ": is " + std::to_string(number) + ", expected 0 to " + std::to_string(most));
  return number;
}

bool Keys::flag(const std::string& key) const {
  const Value& value = find(key);
  if (value.is_array || value.type != ValueType::kBool) wrong(key, value, "a bool");
  return value.bytes[0] != 0;
}

std::string Keys::text(const std::string& key) const {
  const Value& value = find(key);
  if (value.is_array || value.type != ValueType::kString) wrong(key, value, "text");
  return value.bytes;
}

std::vector<std::string> Keys::texts(const std::string& key) const {
  const Value& value = find(key);
  if (!value.is_array || value.type != ValueType::kString) wrong(key, value, "an array of text");
  std::vector<std::string> texts;
  uint64_t begin = 0;
  for (const uint64_t end : value.ends) {
    texts.push_back(value.bytes.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    begin = end;
  }
  return texts;
}

template <class T>
std::vector<T> Keys::numbers(const std::string& key) const {
  const Value& value = find(key);
  if (!value.is_array || value.type != type_of<T>())
    wrong(key, value, std::string("an array of ") + name_of(type_of<T>()));
  std::vector<T> numbers(value.bytes.size() / sizeof(T));
  if (!numbers.empty()) std::memcpy(numbers.data(), value.bytes.data(), numbers.size() * sizeof(T));
  return numbers;
}
template std::vector<uint8_t> Keys::numbers(const std::string&) const;
template std::vector<uint32_t> Keys::numbers(const std::string&) const;
template std::vector<int32_t> Keys::numbers(const std::string&) const;
template std::vector<uint64_t> Keys::numbers(const std::string&) const;
template std::vector<float> Keys::numbers(const std::string&) const;
template std::vector<double> Keys::numbers(const std::string&) const;

std::vector<int32_t> Keys::ids(const std::string& key, int64_t vocabulary) const {
  std::vector<int32_t> ids = numbers<int32_t>(key);
  for (const int32_t id : ids)
    if (id < 0 || id >= vocabulary)
      throw FormatError(key + ": token id " + std::to_string(id) + ", expected 0 to " + std::to_string(vocabulary - 1));
  return ids;
}

void Keys::same_length(const std::string& a, size_t of_a, const std::string& b, size_t of_b) {
  if (of_a != of_b)
    throw FormatError(a + ": has " + std::to_string(of_a) + " entries, expected " + std::to_string(of_b) + " as " + b);
}

}  // namespace glmlite
