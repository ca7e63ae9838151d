#include "program.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "dequantize.h"
#include "ops/slots.h"

namespace glmlite {

namespace {

template <class Kind, class = void>
constexpr bool changes_inputs = false;
template <class Kind>
constexpr bool changes_inputs<Kind, std::void_t<decltype(Kind::kChangesInputs)>> = Kind::kChangesInputs;

// The kind of the list that is called as `spec` is, read.
template <size_t kIndex = 0>
OpKind read_kind(const OpSpec& spec, Slots& slots) {
  if constexpr (kIndex < std::variant_size_v<OpKind>) {
    using Kind = std::variant_alternative_t<kIndex, OpKind>;
    if (spec.kind == Kind::kName) return Kind::read(slots);
    return read_kind<kIndex + 1>(spec, slots);
  } else {
    slots.bad("unknown op");
  }
}

// The op's index among the caches, or -1.
int* cache_of(Op& op) {
  if (auto* attention = std::get_if<ops::Attention>(&op.kind)) return &attention->cache;
  if (auto* latent = std::get_if<ops::LatentAttention>(&op.kind)) return &latent->cache;
  return nullptr;
}
int cache_of(const Op& op) {
  const int* cache = cache_of(const_cast<Op&>(op));
  return cache ? *cache : -1;
}

}  // namespace

Program::Program(const Gguf& file, const std::vector<OpSpec>& specs) {
  std::fill(std::begin(axis_limit), std::end(axis_limit), std::numeric_limits<int32_t>::max());
  if (specs.empty()) throw std::invalid_argument("program: no ops");
  std::vector<bool> changed;  // by value id
  for (const OpSpec& spec : specs) {
    Slots slots(file, spec, *this);
    if (spec.out != static_cast<int>(ops.size())) slots.bad("is not in order");
    if (spec.width <= 0 || spec.width > (int64_t{1} << 31)) slots.bad("width " + std::to_string(spec.width));
    Op op;
    op.kind = read_kind(spec, slots);
    slots.finish();
    op.text = slots.text();
    op.out = spec.out;
    op.width = spec.width;

    if (ops.empty() ? !op.is<ops::Embed>() && !op.is<ops::Input>() : op.is<ops::Embed>())
      slots.bad("a program begins with its only embed, or with an input");
    if (const auto* embed = op.as<ops::Embed>()) {
      tokens = weights[embed->table].n;
      for (size_t a = 0; a < embed->positions.size(); ++a) axis_limit[a] = weights[embed->positions[a]].n;
    }
    if (const auto* rows = op.as<ops::Input>()) {
      if (rows->first != input) slots.bad("begins with column " + std::to_string(rows->first) + " of those given");
      input += op.width;
    }
    ValueInfo value;
    value.width = op.width;
    const bool changes =
        std::visit([](const auto& kind) { return changes_inputs<std::decay_t<decltype(kind)>>; }, op.kind);
    bool selected = false, first = true;
    each_input(op, [&](int id) {
      if (changed[id] || (changes && values[id].last_use >= 0)) slots.bad("reads what an attention changes");
      if (!first && values[id].selected != selected) slots.bad("its inputs have different rows");
      selected = values[id].selected;
      first = false;
      values[id].last_use = op.out;
    });
    if (op.is<ops::Select>() && std::any_of(ops.begin(), ops.end(), [](const Op& o) { return o.is<ops::Select>(); }))
      slots.bad("a second select");
    value.selected = selected || op.is<ops::Select>();
    changed.push_back(false);
    if (changes) each_input(op, [&](int id) { changed[id] = true; });
    ops.push_back(std::move(op));
    values.push_back(value);
  }
  values.back().last_use = static_cast<int>(ops.size());  // the logits are read after the last op
  vocab = values.back().width;
}

// The last place between two attentions where a single value lives on, which is the one just made.
size_t Program::seam(int layers) const {
  const int all = this->layers();
  if (layers < 1 || layers >= all)
    throw std::invalid_argument("split: " + std::to_string(layers) + " layers, expected 1 to " +
                                std::to_string(all - 1));
  if (!keeps) throw std::invalid_argument("split: attentions share a cache");
  const auto attention = [&](int cache) {
    return std::find_if(ops.begin(), ops.end(), [&](const Op& op) { return cache_of(op) == cache; })->out;
  };
  const int low = attention(all - layers - 1), high = attention(all - layers);
  for (int at = high; at > low; --at) {
    const auto lives = [&](const ValueInfo& v) { return v.last_use >= at; };
    if (std::count_if(values.begin(), values.begin() + at, lives) == 1) return static_cast<size_t>(at);
  }
  throw std::invalid_argument("split: between layers " + std::to_string(all - layers - 1) + " and " +
                              std::to_string(all - layers) + " more than one value lives on");
}

std::pair<Program, Program> Program::split(int layers) const {
  const auto at = static_cast<std::ptrdiff_t>(seam(layers));
  const int shift = static_cast<int>(at) - 1, first_layers = this->layers() - layers;
  Program first = *this, second = *this;

  first.ops.erase(first.ops.begin() + at, first.ops.end());
  first.values.erase(first.values.begin() + at, first.values.end());
  first.values.back().last_use = static_cast<int>(at);
  first.values.back().quantized = false;
  first.vocab = first.values.back().width;
  first.caches.resize(first_layers);
  first.keep_used_weights();

  second.ops.erase(second.ops.begin(), second.ops.begin() + at);
  second.values.erase(second.values.begin(), second.values.begin() + shift);
  for (ValueInfo& v : second.values) v.last_use -= shift;
  for (Op& op : second.ops) {
    op.out -= shift;
    each_input(op, [&](int& id) { id -= shift; });
    if (int* cache = cache_of(op)) *cache -= first_layers;
  }
  Op input{};
  input.kind = ops::Input{};
  input.text = "input %0";
  input.width = second.input = first.vocab;
  second.ops.insert(second.ops.begin(), input);
  second.caches.erase(second.caches.begin(), second.caches.begin() + first_layers);
  second.keep_used_weights();
  return {std::move(first), std::move(second)};
}

void Program::keep_used_weights() {
  std::vector<int> place(weights.size(), -1);
  std::vector<Weight> kept;
  for (Op& op : ops) {
    each_weight(op, [&](int& index) {
      if (place[index] < 0) {
        place[index] = static_cast<int>(kept.size());
        kept.push_back(weights[index]);
      }
      index = place[index];
    });
  }
  weights = std::move(kept);
}

std::vector<float> Program::prefix_values() const {
  std::vector<float> all;
  for (const Op& op : ops) {
    const auto* attention = op.as<ops::Attention>();
    if (!attention) continue;
    for (const int index : attention->prefix) {
      const Weight& w = weights[index];
      const size_t at = all.size();
      all.resize(at + static_cast<size_t>(w.n * w.k));
      std::vector<uint8_t> row(static_cast<size_t>(w.tensor->bytes) / static_cast<size_t>(w.n));
      for (int64_t r = 0; r < w.n; ++r) {
        w.tensor->read(static_cast<uint64_t>(r) * row.size(), row.size(), row.data());
        dequantize_row(w.format, row.data(), w.k, all.data() + at + r * w.k);
      }
    }
  }
  return all;
}

uint64_t Program::file_bytes() const {
  uint64_t bytes = 0;
  for (const Weight& w : weights) bytes += w.tensor->bytes;
  return bytes;
}

}  // namespace glmlite
