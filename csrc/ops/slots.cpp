#include "slots.h"

#include <algorithm>
#include <cmath>

#include "../errors.h"
#include "../program.h"

namespace glmlite {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + ")";
}

const char* name_of(Role role) {
  switch (role) {
    case Role::kMatrix:
      return "a matrix";
    case Role::kVector:
      return "a vector";
    case Role::kExperts:
      return "experts";
    case Role::kPrefix:
      return "a prefix";
  }
  return "";
}

}  // namespace

void Slots::bad(const std::string& what) const {
  throw std::invalid_argument("op %" + std::to_string(spec_.out) + " " + spec_.kind + ": " + what);
}

void Slots::damaged(int weight, const std::string& what) const {
  throw FormatError(spec_.kind + ": '" + program_.weights[weight].tensor->name + "' " + what);
}

int Slots::input(const char* slot) {
  asked_.insert(slot);
  const auto it = spec_.inputs.find(slot);
  if (it == spec_.inputs.end()) bad(std::string("input '") + slot + "' is missing");
  if (it->second < 0 || it->second >= spec_.out) bad(std::string("input '") + slot + "' comes later");
  return it->second;
}

int Slots::addend(int x) {
  asked_.insert("add");
  if (!spec_.inputs.count("add")) return -1;
  const int add = input("add");
  if (columns(add) != spec_.width) bad("what it adds has another width");
  if (program_.values[add].selected != program_.values[x].selected) bad("what it adds has other rows");
  return add;
}

int64_t Slots::columns(int value) const { return program_.values[value].width; }

double Slots::number(const char* slot, double low, double high) {
  asked_.insert(slot);
  const auto it = spec_.numbers.find(slot);
  if (it == spec_.numbers.end()) bad(std::string("attribute '") + slot + "' is missing");
  if (!(it->second >= low && it->second <= high)) bad(std::string(slot) + " is " + std::to_string(it->second));
  return it->second;
}

int Slots::count(const char* slot, int low, int high) { return static_cast<int>(number(slot, low, high)); }

// The shape must fit and the type must have kernels.
std::vector<int> Slots::tensors(const char* slot, Role role, const std::vector<int64_t>& want) {
  asked_.insert(slot);
  std::vector<int> found;
  const auto it = spec_.weights.find(slot);
  if (it == spec_.weights.end()) return found;
  for (const auto& name : it->second) {
    const Tensor* t = file_.find(name);
    if (!t) throw FormatError(spec_.kind + ": the file has no tensor '" + name + "'");
    std::vector<int64_t> shape = t->shape;
    if (role == Role::kMatrix && shape.size() == 4) shape = {shape[0], shape[1] * shape[2] * shape[3]};
    bool fits = shape.size() == want.size();
    for (size_t i = 0; fits && i < want.size(); ++i) fits = want[i] < 0 ? shape[i] > 0 : shape[i] == want[i];
    if (!fits)
      throw FormatError(spec_.kind + ": '" + name + "' is " + shape_text(t->shape) + ", expected " + shape_text(want));
    if (!t->known)
      throw FormatError(spec_.kind + ": '" + name + "' is stored as GGUF type " + std::to_string(t->type) +
                        ", which has no kernels; convert the file to another type");
    auto& all = program_.weights;
    auto known = std::find_if(all.begin(), all.end(), [&](const Weight& w) { return w.tensor == t; });
    if (known == all.end()) {
      Weight w;
      w.tensor = t;
      w.role = role;
      w.format = t->format;
      w.count = role == Role::kExperts ? shape[0] : 1;
      w.n = shape[role == Role::kExperts];
      w.k = role == Role::kVector ? 1 : shape.back();
      known = all.insert(all.end(), w);
    } else if (known->role != role) {
      throw FormatError("'" + name + "' is used both as " + name_of(known->role) + " and as " + name_of(role));
    }
    found.push_back(static_cast<int>(known - all.begin()));
  }
  return found;
}

int Slots::only(const char* slot, const std::vector<int>& found) const {
  if (found.empty()) bad(std::string("weight '") + slot + "' is missing");
  if (found.size() > 1) bad(std::string("several tensors for '") + slot + "'");
  return found[0];
}

std::vector<int> Slots::matrices(const char* slot, int64_t n, int64_t k) {
  return tensors(slot, Role::kMatrix, {n, k});
}

int Slots::matrix(const char* slot, int64_t n, int64_t k) { return only(slot, matrices(slot, n, k)); }

std::vector<int> Slots::experts(const char* slot, int64_t count, int64_t n, int64_t k) {
  return tensors(slot, Role::kExperts, {count, n, k});
}

std::vector<int> Slots::vectors(const char* slot, int64_t n) { return tensors(slot, Role::kVector, {n}); }

int Slots::vector(const char* slot, int64_t n) { return only(slot, vectors(slot, n)); }

int Slots::optional_vector(const char* slot, int64_t n) {
  asked_.insert(slot);
  return spec_.weights.count(slot) ? vector(slot, n) : -1;
}

std::vector<int> Slots::prefix(int64_t columns) {
  const auto found = tensors("prefix", Role::kPrefix, {-1, columns});
  if (!found.empty() && (found.size() != 2 || sizes(found[0]).n != sizes(found[1]).n))
    bad("a prefix is keys and values");
  const int64_t length = found.empty() ? 0 : sizes(found[0]).n;
  if (!program_.caches.empty() && length != program_.prefix)
    throw FormatError("attention: the prefix of layer " + std::to_string(program_.caches.size()) + " has " +
                      std::to_string(length) + " entries, that of layer 0 has " + std::to_string(program_.prefix));
  program_.prefix = length;
  return found;
}

Slots::Sizes Slots::sizes(int weight) const {
  const Weight& w = program_.weights[weight];
  return {w.count, w.n, w.k};
}

void Slots::same_rows(int vector, int matrix) const {
  const Weight &v = program_.weights[vector], &m = program_.weights[matrix];
  if (v.n != m.n) damaged(vector, "is " + shape_text(v.tensor->shape) + ", expected " + shape_text({m.n}));
}

void Slots::one_group(const std::vector<int>& weights) {
  for (const int i : weights) {
    Weight& w = program_.weights[i];
    if (w.group >= 0 && w.group != spec_.out) throw FormatError("'" + w.tensor->name + "' is used twice");
    w.group = spec_.out;
  }
}

int Slots::rope(int columns) {
  if (!spec_.has_rope) return -1;
  const RopeTable& t = spec_.rope;
  const size_t n = t.first.size();
  if (t.second.size() != n || t.axis.size() != n || t.freq.size() != n || n > static_cast<size_t>(columns))
    bad("rope table of uneven length");
  for (size_t i = 0; i < n; ++i) {
    const auto within = [](int32_t value, int below) { return value >= 0 && value < below; };
    if (!within(t.first[i], columns) || !within(t.second[i], columns) || !within(t.axis[i], kAxes) ||
        !std::isfinite(t.freq[i]))
      bad("rope pair " + std::to_string(i) + " is out of range");
  }
  if (!std::isfinite(t.magnitude)) bad("rope magnitude is not finite");
  auto& all = program_.ropes;
  const auto it = std::find(all.begin(), all.end(), t);
  if (it != all.end()) return static_cast<int>(it - all.begin());
  all.push_back(t);
  return static_cast<int>(all.size()) - 1;
}

int Slots::cache(const CacheShape& shape) {
  asked_.insert("layer");  // caches are counted anew
  for (const auto& [slot, value] : spec_.inputs) {
    if (program_.values[value].selected) bad(slot + " comes after select");
  }
  auto& all = program_.caches;
  const bool keeps = spec_.numbers.count("layer");
  if (!keeps && program_.prefix > 0) bad("has a prefix, and keeps nothing");
  if (!all.empty() && keeps != program_.keeps) bad("all attentions of a program keep what they read, or none does");
  program_.keeps = keeps;
  const auto same = keeps ? all.end() : std::find(all.begin(), all.end(), shape);
  const auto index = static_cast<int>(same - all.begin());
  if (same == all.end()) all.push_back(shape);
  text_ += " of layer " + std::to_string(index);
  return index;
}

void Slots::multiplies(int value, const std::vector<int>& weights) {
  for (const int i : weights)
    if (format_info(program_.weights[i].format).block_values > 1) program_.values[value].quantized = true;
}

std::pair<int64_t, int> Slots::routed(int value) const {
  const auto* route = std::get_if<ops::Route>(&program_.ops[value].kind);
  if (!route) bad("its routing comes from no route");
  return {program_.weights[route->gate].n, route->used};
}

void Slots::width(int64_t want) const {
  if (spec_.width != want) bad("width " + std::to_string(spec_.width) + ", expected " + std::to_string(want));
}

void Slots::name(int weight) { text_ += " '" + program_.weights[weight].tensor->name + "'"; }

void Slots::finish() const {
  const auto check = [&](const auto& given, const char* what) {
    for (const auto& named : given)
      if (!asked_.count(named.first)) bad(std::string("no ") + what + " '" + named.first + "'");
  };
  check(spec_.inputs, "input");
  check(spec_.weights, "weight");
  check(spec_.numbers, "attribute");
}

}  // namespace glmlite
