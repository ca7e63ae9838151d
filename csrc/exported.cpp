#include "exported.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "keys.h"
#include "text/utf8.h"

namespace glmlite {

namespace {

constexpr char kPackedTensor[] = "glmlite.packed";
constexpr uint64_t kMostBytes = uint64_t{1} << 48;  // of a file, so that no sum of sizes is too large for 64 bits
constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();

// Takes the tensor of packed weights out of the list, and returns where it lies.
std::pair<uint64_t, uint64_t> take_packed(Gguf::Contents& contents) {
  const auto found = contents.index.find(kPackedTensor);
  if (found == contents.index.end()) throw FormatError(std::string("the file has no tensor '") + kPackedTensor + "'");
  const auto at = contents.tensors.begin() + static_cast<std::ptrdiff_t>(found->second);
  const std::pair<uint64_t, uint64_t> place{at->offset, at->bytes};
  contents.tensors.erase(at);
  contents.index.clear();
  for (size_t i = 0; i < contents.tensors.size(); ++i) contents.index.emplace(contents.tensors[i].name, i);
  return place;
}

void describe(const Keys& keys, uint64_t file_bytes, Gguf::Contents& contents) {
  const auto names = keys.texts("glmlite.packed.names");
  const auto types = keys.numbers<uint32_t>("glmlite.packed.types");
  const auto dims = keys.numbers<uint32_t>("glmlite.packed.dims");
  const auto sizes = keys.numbers<uint64_t>("glmlite.packed.sizes");
  Keys::same_length("glmlite.packed.types", types.size(), "glmlite.packed.names", names.size());
  Keys::same_length("glmlite.packed.dims", dims.size(), "glmlite.packed.names", names.size());
  uint64_t left = 2 * file_bytes;  // packing makes a matrix hardly smaller
  size_t at = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    Tensor tensor{};
    tensor.name = names[i];
    tensor.type = types[i];
    tensor.known = format_from_gguf(tensor.type, &tensor.format);
    tensor.offset = i;  // they are packed in this order
    const std::string subject = "tensor '" + printable(tensor.name) + "' ";
    if (first_broken(tensor.name) != tensor.name.size()) throw FormatError(subject + "has that name, expected UTF-8");
    if (!tensor.known)
      throw FormatError(subject + "is of type " + std::to_string(tensor.type) + ", which is not packed");
    if (dims[i] < 1 || dims[i] > 4 || dims[i] > sizes.size() - at)
      throw FormatError(subject + "has " + std::to_string(dims[i]) + " dimensions, expected 1 to 4, and as many sizes");
    for (uint32_t d = 0; d < dims[i]; ++d, ++at) {
      if (sizes[at] == 0 || sizes[at] > kMostBytes)
        throw FormatError(subject + "has a dimension of " + std::to_string(sizes[at]));
      tensor.shape.push_back(static_cast<int64_t>(sizes[at]));
    }
    try {
      tensor.bytes = tensor_bytes(tensor.shape, tensor.type, left);
    } catch (const std::invalid_argument& error) { throw FormatError(subject + error.what()); }
    left -= tensor.bytes;
    if (!contents.index.emplace(tensor.name, contents.tensors.size()).second)
      throw FormatError(subject + "is there twice");
    contents.tensors.push_back(std::move(tensor));
  }
  if (at != sizes.size()) throw FormatError("glmlite.packed.sizes: has more entries than the tensors have dimensions");
}

}  // namespace

void add_packed(Gguf::Contents& contents, const std::string& where) {
  const Keys keys(contents.metadata);
  if (!keys.has("glmlite.export.version")) return;
  try {
    const uint64_t version = keys.integer("glmlite.export.version", kAny);
    const uint64_t packed = keys.integer("glmlite.packed.version", kAny);
    if (version != kExportVersion || packed != PackedFile::kVersion)
      throw FormatError("exported in version " + std::to_string(version) + ", packed in version " +
                        std::to_string(packed) + ", expected " + std::to_string(kExportVersion) + " and " +
                        std::to_string(PackedFile::kVersion) + ": export the model again with this version of glmlite");
    if (contents.parts.size() != 1 || contents.bytes() > kMostBytes)
      throw FormatError("an exported model in several parts, or of more than 2^48 bytes");
    const auto [begin, bytes] = take_packed(contents);
    PackedFile::Identity identity;
    identity.layout = keys.integer("glmlite.packed.layout", kAny);
    identity.bytes = bytes;
    const File& file = *contents.parts[0];
    contents.packed = std::make_shared<const PackedFile>(file.path(), identity, begin);
    file.check_same(contents.packed->file());
    describe(keys, file.size(), contents);
  } catch (const FormatError& error) { throw FormatError(where + ": " + error.what()); }
}

std::vector<OpSpec> exported_program(const Metadata& metadata) {
  const Keys keys(metadata);
  const std::string at = "glmlite.program.";
  const auto kinds = keys.texts(at + "kinds");
  const auto widths = keys.numbers<uint64_t>(at + "widths");
  Keys::same_length(at + "widths", widths.size(), at + "kinds", kinds.size());
  std::vector<OpSpec> specs;
  for (size_t i = 0; i < kinds.size(); ++i) {
    OpSpec spec{};
    spec.kind = kinds[i];
    spec.out = static_cast<int>(i);
    spec.width = widths[i] <= kMostBytes ? static_cast<int64_t>(widths[i]) : -1;  // which Program refuses
    specs.push_back(std::move(spec));
  }
  // A table of slots: the op of each row, the slot's name, and its value in a column of its own.
  const auto rows = [&](const std::string& table, size_t count, auto put) {
    const auto ops = keys.numbers<uint32_t>(at + table + ".ops");
    const auto slots = keys.texts(at + table + ".slots");
    Keys::same_length(at + table + ".slots", slots.size(), at + table + ".ops", ops.size());
    Keys::same_length(at + table + ".values", count, at + table + ".ops", ops.size());
    for (size_t i = 0; i < ops.size(); ++i) {
      if (ops[i] >= specs.size()) throw FormatError(at + table + ".ops: there is no op " + std::to_string(ops[i]));
      put(specs[ops[i]], slots[i], i);
    }
  };
  const auto inputs = keys.numbers<int32_t>(at + "inputs.values");
  rows("inputs", inputs.size(),
       [&](OpSpec& spec, const std::string& slot, size_t i) { spec.inputs[slot] = inputs[i]; });
  const auto weights = keys.texts(at + "weights.values");
  rows("weights", weights.size(),
       [&](OpSpec& spec, const std::string& slot, size_t i) { spec.weights[slot].push_back(weights[i]); });
  const auto numbers = keys.numbers<double>(at + "numbers.values");
  rows("numbers", numbers.size(),
       [&](OpSpec& spec, const std::string& slot, size_t i) { spec.numbers[slot] = numbers[i]; });

  // The distinct turns, end to end, and which of them an op has.
  const auto ends = keys.numbers<uint32_t>(at + "ropes.ends");
  const auto magnitudes = keys.numbers<double>(at + "ropes.magnitudes");
  const auto first = keys.numbers<int32_t>(at + "ropes.first"), second = keys.numbers<int32_t>(at + "ropes.second");
  const auto axis = keys.numbers<int32_t>(at + "ropes.axis");
  const auto freq = keys.numbers<double>(at + "ropes.freq");
  Keys::same_length(at + "ropes.magnitudes", magnitudes.size(), at + "ropes.ends", ends.size());
  Keys::same_length(at + "ropes.second", second.size(), at + "ropes.first", first.size());
  Keys::same_length(at + "ropes.axis", axis.size(), at + "ropes.first", first.size());
  Keys::same_length(at + "ropes.freq", freq.size(), at + "ropes.first", first.size());
  const auto which = keys.numbers<int32_t>(at + "rope.values");
  rows("rope", which.size(), [&](OpSpec& spec, const std::string&, size_t i) {
    const auto n = static_cast<size_t>(which[i]);
    if (which[i] < 0 || n >= ends.size())
      throw FormatError(at + "rope.values: there is no rope " + std::to_string(which[i]));
    const size_t begin = n == 0 ? 0 : ends[n - 1], end = ends[n];
    if (begin > end || end > first.size())
      throw FormatError(at + "ropes.ends: rope " + std::to_string(n) + " ends early");
    const auto part = [&](const auto& all) {
      return std::decay_t<decltype(all)>(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                         all.begin() + static_cast<std::ptrdiff_t>(end));
    };
    spec.has_rope = true;
    spec.rope = {part(first), part(second), part(axis), part(freq), magnitudes[n]};
  });
  return specs;
}

}  // namespace glmlite
