#include "program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "dequantize.h"
#include "errors.h"

namespace glmlite {

namespace {

// What each kind of op may have. A slot with a trailing '?' may be missing.
struct OpRow {
  const char* name;
  OpKind kind;
  std::set<std::string> inputs, weights, numbers;
};

const OpRow kOps[] = {
    {"embed", OpKind::kEmbed, {}, {"table", "positions?"}, {}},
    {"rms_norm", OpKind::kRmsNorm, {"x", "add?"}, {"w"}, {"eps"}},
    {"layer_norm", OpKind::kLayerNorm, {"x"}, {"w", "b"}, {"eps"}},
    {"linear", OpKind::kLinear, {"x", "add?"}, {"w", "b?"}, {"alpha"}},
    {"attention",
     OpKind::kAttention,
     {"qkv"},
     {"q_norm?", "k_norm?", "rope_factors?", "prefix?"},
     {"layer", "heads", "kv_heads", "head_dim", "scale", "norm_eps"}},
    {"swiglu", OpKind::kSwiglu, {"x"}, {}, {}},
    {"gelu", OpKind::kGelu, {"x"}, {}, {}},
    {"select", OpKind::kSelect, {"x"}, {}, {}},
};

[[noreturn]] void bad(const OpSpec& spec, const std::string& what) {
  throw std::invalid_argument("op %" + std::to_string(spec.out) + " " + spec.kind + ": " + what);
}

template <class Map>
void check_slots(const OpSpec& spec, const std::set<std::string>& allowed, const Map& given, const char* what) {
  for (const auto& [slot, value] : given)
    if (!allowed.count(slot) && !allowed.count(slot + "?")) bad(spec, std::string("no ") + what + " '" + slot + "'");
  for (const auto& slot : allowed)
    if (slot.back() != '?' && !given.count(slot)) bad(spec, std::string(what) + " '" + slot + "' is missing");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + ")";
}

// Checks one op against what came before it.
class Checker {
 public:
  Checker(const Gguf& file, const OpSpec& spec, Program& program) : file_(file), spec_(spec), program_(program) {}

  Op check() {
    const OpRow* row = std::find_if(std::begin(kOps), std::end(kOps), [&](auto& r) { return r.name == spec_.kind; });
    if (row == std::end(kOps)) bad(spec_, "unknown op");
    check_slots(spec_, row->inputs, spec_.inputs, "input");
    check_slots(spec_, row->weights, spec_.weights, "weight");
    check_slots(spec_, row->numbers, spec_.numbers, "attribute");
    op_.kind = row->kind;
    op_.out = spec_.out;
    op_.width = spec_.width;
    op_.text = spec_.kind + " %" + std::to_string(spec_.out);
    if (spec_.out != static_cast<int>(program_.ops.size())) bad(spec_, "is not in order");
    if (spec_.width <= 0 || spec_.width > (int64_t{1} << 31)) bad(spec_, "width " + std::to_string(spec_.width));
    if (!program_.ops.empty() == (op_.kind == OpKind::kEmbed)) bad(spec_, "a program begins with its only embed");
    op_.x = input(spec_.kind == "attention" ? "qkv" : "x");
    op_.add = input("add");
    if (op_.add >= 0) {
      if (program_.values[op_.add].width != op_.width) bad(spec_, "what it adds has another width");
      if (program_.values[op_.add].selected != program_.values[op_.x].selected)
        bad(spec_, "what it adds has other rows");
    }
    fill();
    return op_;
  }

 private:
  int64_t in() const { return program_.values[op_.x].width; }

  int input(const char* slot) {
    const auto it = spec_.inputs.find(slot);
    if (it == spec_.inputs.end()) return -1;
    if (it->second < 0 || it->second >= spec_.out) bad(spec_, std::string("input '") + slot + "' comes later");
    return it->second;
  }

  double number(const char* slot, double low, double high) {
    const double value = spec_.numbers.at(slot);
    if (!(value >= low && value <= high)) bad(spec_, std::string(slot) + " is " + std::to_string(value));
    return value;
  }

  // The tensors of a slot; sizes of -1 may be any. The shape must fit and the type must have kernels.
  std::vector<const Tensor*> tensors(const char* slot, const std::vector<int64_t>& want) {
    std::vector<const Tensor*> found;
    const auto it = spec_.weights.find(slot);
    if (it == spec_.weights.end()) return found;
    for (const auto& name : it->second) {
      const Tensor* t = file_.find(name);
      if (!t) throw FormatError(spec_.kind + ": the file has no tensor '" + name + "'");
      bool fits = t->shape.size() == want.size();
      for (size_t i = 0; fits && i < want.size(); ++i) fits = want[i] < 0 ? t->shape[i] > 0 : t->shape[i] == want[i];
      if (!fits)
        throw FormatError(spec_.kind + ": '" + name + "' is " + shape_text(t->shape) + ", expected " +
                          shape_text(want));
      if (!t->known)
        throw FormatError(spec_.kind + ": '" + name + "' is stored as GGUF type " + std::to_string(t->type) +
                          ", which has no kernels; convert the file to another type");
      found.push_back(t);
    }
    return found;
  }

  const Tensor* tensor(const char* slot, const std::vector<int64_t>& want) {
    const auto found = tensors(slot, want);
    if (found.size() > 1) bad(spec_, std::string("several tensors for '") + slot + "'");
    return found.empty() ? nullptr : found[0];
  }

  void same_width(int64_t want) {
    if (op_.width != want) bad(spec_, "width " + std::to_string(op_.width) + ", expected " + std::to_string(want));
  }

  void fill() {
    switch (op_.kind) {
      case OpKind::kInput:  // not in kOps
        break;
      case OpKind::kEmbed:
        op_.w = tensors("table", {-1, op_.width});
        if (op_.w.size() != 1) bad(spec_, "needs one table");
        op_.positions = tensors("positions", {-1, op_.width});
        if (op_.positions.size() > 2) bad(spec_, "more than two position tables");
        program_.tokens = op_.w[0]->shape[0];
        for (size_t a = 0; a < op_.positions.size(); ++a) program_.axis_limit[a] = op_.positions[a]->shape[0];
        break;
      case OpKind::kRmsNorm:
      case OpKind::kLayerNorm:
        same_width(in());
        op_.w = tensors("w", {op_.width});
        if (op_.w.size() != 1) bad(spec_, "needs one weight");
        if (op_.kind == OpKind::kLayerNorm) {
          op_.bias = tensors("b", {op_.width});
          if (op_.bias.size() != 1) bad(spec_, "needs one bias");
        }
        op_.eps = static_cast<float>(number("eps", 0, 1));
        break;
      case OpKind::kLinear: {
        op_.w = tensors("w", {-1, in()});
        op_.bias = tensors("b", {-1});
        if (op_.w.empty() || (!op_.bias.empty() && op_.bias.size() != op_.w.size()))
          bad(spec_, "weights and biases differ");
        int64_t rows = 0;
        for (size_t i = 0; i < op_.w.size(); ++i) {
          rows += op_.w[i]->shape[0];
          if (!op_.bias.empty() && op_.bias[i]->shape[0] != op_.w[i]->shape[0])
            throw FormatError("linear: '" + op_.bias[i]->name + "' is " + shape_text(op_.bias[i]->shape) +
                              ", expected " + shape_text({op_.w[i]->shape[0]}));
        }
        same_width(rows);
        op_.alpha = static_cast<float>(number("alpha", -1e6, 1e6));
        op_.text += " '" + op_.w[0]->name + "'";
        break;
      }
      case OpKind::kAttention:
        fill_attention();
        break;
      case OpKind::kSwiglu:
        if (in() % 2) bad(spec_, "odd width");
        same_width(in() / 2);
        break;
      case OpKind::kSelect:
        if (program_.selects) bad(spec_, "a second select");
        program_.selects = true;
        [[fallthrough]];
      case OpKind::kGelu:
        same_width(in());
        break;
    }
  }

  void fill_attention() {
    op_.heads = static_cast<int>(number("heads", 1, 1 << 16));
    op_.kv_heads = static_cast<int>(number("kv_heads", 1, op_.heads));
    op_.head_dim = static_cast<int>(number("head_dim", 1, 1 << 16));
    if (op_.heads % op_.kv_heads) bad(spec_, "query heads do not divide among key heads");
    if (in() != int64_t{op_.heads + 2 * op_.kv_heads} * op_.head_dim) bad(spec_, "qkv has another width");
    if (program_.values[op_.x].selected) bad(spec_, "after select");
    same_width(int64_t{op_.heads} * op_.head_dim);
    op_.scale = static_cast<float>(number("scale", 0, 1e6));
    op_.eps = static_cast<float>(number("norm_eps", 0, 1));
    op_.q_norm = tensor("q_norm", {op_.head_dim});
    op_.k_norm = tensor("k_norm", {op_.head_dim});
    const auto prefix = tensors("prefix", {-1, int64_t{op_.kv_heads} * op_.head_dim});
    if (!prefix.empty()) {
      if (prefix.size() != 2 || prefix[0]->shape != prefix[1]->shape) bad(spec_, "a prefix is keys and values");
      op_.prefix_k = prefix[0];
      op_.prefix_v = prefix[1];
    }
    const int64_t length = prefix.empty() ? 0 : prefix[0]->shape[0];
    if (program_.caches > 0 && length != program_.prefix)
      throw FormatError("attention: the prefix of layer " + std::to_string(program_.caches) + " has " +
                        std::to_string(length) + " entries, that of layer 0 has " + std::to_string(program_.prefix));
    program_.prefix = length;
    op_.cache = program_.caches++;
    op_.text += " of layer " + std::to_string(op_.cache);
    if (spec_.has_rope) op_.rope = rope();
  }

  int rope() {
    const RopeTable& t = spec_.rope;
    const size_t n = t.first.size();
    if (t.second.size() != n || t.axis.size() != n || t.freq.size() != n || n > static_cast<size_t>(op_.head_dim))
      bad(spec_, "rope table of uneven length");
    for (size_t i = 0; i < n; ++i) {
      const bool ok = t.first[i] >= 0 && t.first[i] < op_.head_dim && t.second[i] >= 0 && t.second[i] < op_.head_dim &&
                      (t.axis[i] == 0 || t.axis[i] == 1) && std::isfinite(t.freq[i]);
      if (!ok) bad(spec_, "rope pair " + std::to_string(i) + " is out of range");
    }
    if (!std::isfinite(t.magnitude)) bad(spec_, "rope magnitude is not finite");
    auto& all = program_.ropes;
    const auto it = std::find(all.begin(), all.end(), t);
    if (it != all.end()) return static_cast<int>(it - all.begin());
    all.push_back(t);
    return static_cast<int>(all.size()) - 1;
  }

  const Gguf& file_;
  const OpSpec& spec_;
  Program& program_;
  Op op_{};
};

}  // namespace

Program::Program(const Gguf& file, const std::vector<OpSpec>& specs) {
  axis_limit[0] = axis_limit[1] = std::numeric_limits<int32_t>::max();
  if (specs.empty()) throw std::invalid_argument("program: no ops");
  std::vector<bool> turned;  // by value id
  for (const OpSpec& spec : specs) {
    const Op op = Checker(file, spec, *this).check();
    ValueInfo value;
    value.width = op.width;
    value.selected = op.kind == OpKind::kSelect || (op.x >= 0 && values[op.x].selected);
    for (int input : {op.x, op.add}) {
      if (input < 0) continue;
      // Attention turns q and k where they lie, so nothing else may read them.
      const bool turns = op.kind == OpKind::kAttention && values[input].last_use >= 0;
      if (turned[input] || turns) bad(spec, "reads what an attention changes");
      values[input].last_use = op.out;
    }
    turned.push_back(false);
    if (op.kind == OpKind::kAttention) turned[op.x] = true;
    if (op.kind == OpKind::kLinear) {
      for (const Tensor* w : op.w)
        if (format_info(w->format).block_values > 1) values[op.x].quantized = true;
    }
    ops.push_back(op);
    values.push_back(value);
  }
  values.back().last_use = static_cast<int>(ops.size());  // the logits are read after the last op
  vocab = values.back().width;
}

// The last place between two attentions where a single value lives on, which is the one just made.
size_t Program::seam(int layers) const {
  if (layers < 1 || layers >= caches)
    throw std::invalid_argument("split: " + std::to_string(layers) + " layers, expected 1 to " +
                                std::to_string(caches - 1));
  const auto attention = [&](int cache) {
    return std::find_if(ops.begin(), ops.end(), [&](const Op& op) { return op.cache == cache; })->out;
  };
  const int low = attention(caches - layers - 1), high = attention(caches - layers);
  for (int at = high; at > low; --at) {
    const auto lives = [&](const ValueInfo& v) { return v.last_use >= at; };
    if (std::count_if(values.begin(), values.begin() + at, lives) == 1) return static_cast<size_t>(at);
  }
  throw std::invalid_argument("split: between layers " + std::to_string(caches - layers - 1) + " and " +
                              std::to_string(caches - layers) + " more than one value lives on");
}

std::pair<Program, Program> Program::split(int layers) const {
  const auto at = static_cast<std::ptrdiff_t>(seam(layers));
  const int shift = static_cast<int>(at) - 1;
  Program first = *this, second = *this;

  first.ops.erase(first.ops.begin() + at, first.ops.end());
  first.values.erase(first.values.begin() + at, first.values.end());
  first.values.back().last_use = static_cast<int>(at);
  first.values.back().quantized = false;
  first.vocab = first.values.back().width;
  first.caches -= layers;
  first.selects = false;

  second.ops.erase(second.ops.begin(), second.ops.begin() + at);
  second.values.erase(second.values.begin(), second.values.begin() + shift);
  for (ValueInfo& v : second.values) v.last_use -= shift;
  for (Op& op : second.ops) {
    for (int* id : {&op.out, &op.x, &op.add})
      if (*id >= 0) *id -= shift;
    if (op.cache >= 0) op.cache -= first.caches;
  }
  Op input{};
  input.kind = OpKind::kInput;
  input.text = "input %0";
  input.out = 0;
  input.width = first.vocab;
  second.ops.insert(second.ops.begin(), input);
  second.caches = layers;
  return {std::move(first), std::move(second)};
}

std::vector<float> Program::prefix_values() const {
  std::vector<float> all;
  for (const Op& op : ops) {
    for (const Tensor* t : {op.prefix_k, op.prefix_v}) {
      if (!t) continue;
      const size_t at = all.size();
      all.resize(at + static_cast<size_t>(t->shape[0] * t->shape[1]));
      std::vector<uint8_t> row(static_cast<size_t>(t->bytes) / static_cast<size_t>(t->shape[0]));
      for (int64_t r = 0; r < t->shape[0]; ++r) {
        t->read(static_cast<uint64_t>(r) * row.size(), row.size(), row.data());
        dequantize_row(t->format, row.data(), t->shape[1], all.data() + at + r * t->shape[1]);
      }
    }
  }
  return all;
}

uint64_t Program::file_bytes() const {
  std::set<const Tensor*> tensors;
  for (const Op& op : ops) {
    for (const auto* list : {&op.w, &op.bias, &op.positions}) tensors.insert(list->begin(), list->end());
    tensors.insert({op.q_norm, op.k_norm, op.prefix_k, op.prefix_v});
  }
  tensors.erase(nullptr);
  uint64_t bytes = 0;
  for (const Tensor* t : tensors) bytes += t->bytes;
  return bytes;
}

}  // namespace glmlite
