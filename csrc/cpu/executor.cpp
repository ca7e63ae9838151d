// Runs a program on the CPU: packs the weights, keeps the KV pages, walks the ops with a team of threads.
#include "../executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#include "../buffers.h"
#include "../dequantize.h"
#include "../errors.h"
#include "../memory.h"
#include "../tensor_reader.h"
#include "kernels.h"
#include "pack.h"
#include "team.h"

namespace glmlite {

namespace {

size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;  // integers, so that the compiler may vectorise the loop
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

// A matrix in panels.
struct Packed {
  Format format;
  int64_t n, k;
  const uint8_t* panels;
  int64_t panel_count() const { return (n + kLanes - 1) / kLanes; }
};

// The query heads of some tokens of one sequence that share a KV head: what one call of `attend` computes.
struct Tile {
  int64_t begin, end;  // tokens
  const Run* run;
  int kv_head;
  int64_t context;  // entries that any of its tokens sees
};

constexpr int64_t kTileQueries = 64;
constexpr int kChunkPages = kChunkTokens / kPageTokens;
constexpr int64_t kPieceValues = 1 << 17;
constexpr int64_t kRowsAtOnce = 16;
constexpr size_t kAheadBytes = 256 << 10;  // of weights that a waiting thread fetches: a part of its cache
constexpr int64_t kMemoryBoundRows = 32;   // for more, weights are read faster than multiplied with
constexpr int64_t kGroupPages = 16;        // of the cache: 256 KB of a head's f16 keys, of 128 columns, in one stretch
constexpr int64_t kUnitPanels = 2;         // of parts of a matrix: tiles are up to two panels wide
constexpr uint64_t kTaskBytes = 2 << 20;   // of the file: what a thread reads and packs at a time

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(Program program, const ExecutorOptions& options, const LoadProgress& progress)
      : program_(std::move(program)),
        kernels_(cpu_kernels(options.isa.c_str())),
        team_(options.threads > 0 ? options.threads : default_threads()),
        kv_type_(options.kv_type),
        pages_(options.pages) {
    plan_weights();
    plan_cache();
    plan_values();
    const size_t need = weights_size_ + static_cast<size_t>(pages_) * page_bytes_;
    if (need > available_memory()) throw OutOfMemory("weights and KV cache", need);
    weights_ = Memory(weights_size_, "weights");
    cache_ = Memory(static_cast<size_t>(pages_) * page_bytes_, "KV cache");
    load(progress);
  }

  StepResult run(const Step& step, const CancelFlag* cancel, const Watch* watch) override;
  void copy_page(int32_t from, int32_t to) override {
    for (const Cache& c : caches_) {
      for (int head = 0; head < c.kv_heads; ++head) {
        std::memcpy(k_page(c, to, head), k_page(c, from, head), c.head_bytes);
        std::memcpy(v_page(c, to, head), v_page(c, from, head), c.head_bytes);
      }
    }
  }
  void write_prefix(const std::vector<int32_t>& pages) override;
  size_t weight_bytes() const override { return weights_.size(); }
  size_t kv_bytes() const override { return cache_.size(); }
  size_t scratch_bytes() const override { return values_.size() + scratch_.size() + partials_.size() + turns_.size(); }
  int threads() const override { return team_.size(); }
  const char* isa() const override { return kernels_.name; }
  double progress() const override {
    return static_cast<double>(done_.load(std::memory_order_relaxed)) / static_cast<double>(program_.ops.size());
  }

 private:
  // KV geometry of one attention op. Pages lie in groups of kGroupPages; in a group, keys of its pages for the first KV
  // head, values for it, keys for the next head. So a thread reads long stretches of memory, and a short context still
  // touches little of a long cache.
  struct Cache {
    size_t offset;      // bytes into cache_
    size_t head_bytes;  // of one KV head in a page, keys or values
    int kv_heads;
  };
  // The weights of one op.
  struct Weights {
    std::vector<const Packed*> w;    // embed, linear
    const float* norm = nullptr;     // rms_norm, layer_norm
    std::vector<const float*> bias;  // layer_norm, linear
    std::vector<const Packed*> positions;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
  };

  void plan_weights();
  void plan_cache();
  void plan_values();
  void load(const LoadProgress& progress);
  void bind_weights();
  void reserve(const Step& step);

  const Weights& weights(const Op& op) const { return bound_[op.out]; }
  float* value(int id) const { return buffers_[plan_.values[id].plain]; }
  // What a linear reads of value `id`. A single row is rounded here, by each thread for itself: no thread waits for
  // another to do it.
  Activations activations(int id, int thread) const;
  int64_t rows_of(int id) const {
    return program_.values[id].selected ? static_cast<int64_t>(step_->rows.size()) : tokens_;
  }
  uint8_t* k_page(const Cache& c, int32_t page, int head) const { return head_page(c, page, 2 * head); }
  uint8_t* v_page(const Cache& c, int32_t page, int head) const { return head_page(c, page, 2 * head + 1); }
  // part: keys and values of the heads in turn.
  uint8_t* head_page(const Cache& c, int32_t page, int part) const {
    const int64_t index = page % kGroupPages, first = page - index, pages = std::min(kGroupPages, pages_ - first);
    return cache_.data() + c.offset + static_cast<size_t>(first * 2 * c.kv_heads + part * pages + index) * c.head_bytes;
  }

  // Each is run by all threads of the team; barriers are where they need one, and one after each op.
  void run_op(const Op& op, int thread);
  void make_turns(int thread);
  void embed(const Op& op, int thread);
  void linear(const Op& op, int thread);
  void linear_swiglu(const Op& op, const Op& next, int thread);
  void multiply(const Op& op, const Activations& act, int64_t begin, int64_t end, float* y, int64_t stride,
                int64_t first, int thread);
  void attention(const Op& op, int thread);
  void turn_and_store(const Op& op, int thread);
  bool store_kv(const Cache& cache, int32_t page, int64_t index, float* keys, const float* values, int64_t head_dim);
  void attend_chunk(const Op& op, const Tile& tile, int64_t chunk, const uint8_t* const* ahead, float* out,
                    uint8_t* scratch);
  void find_pages(const Op& op, const Tile& tile, int64_t chunk, const uint8_t** k, const uint8_t** v) const;
  void attend_tile(const Op& op, const Tile& tile, uint8_t* scratch);
  void merge_tile(const Op& op, const Tile& tile, float* parts, size_t stride);
  void finish_tile(const Op& op, const Tile& tile, const float* state);
  void quantize_rows(int id, int64_t begin, int64_t end) {
    if (plan_.values[id].quantized < 0 || rows_of(id) == 1) return;
    kernels_.quantize(value(id), program_.values[id].width, begin, end, rows_of(id),
                      reinterpret_cast<uint8_t*>(buffers_[plan_.values[id].quantized]));
  }
  int64_t first_row(int thread, int64_t rows) const { return rows * thread / team_.size(); }
  template <class Fn>
  void each_row(int thread, int64_t rows, Fn fn) {
    for (int64_t t = first_row(thread, rows); t < first_row(thread + 1, rows); ++t) fn(t);
  }
  // The thread's rows of the op's result, quantized some at a time, while they are in the cache.
  template <class Fn>
  void make_rows(const Op& op, int thread, Fn make) {
    const int64_t rows = rows_of(op.out), last = first_row(thread + 1, rows);
    for (int64_t begin = first_row(thread, rows); begin < last; begin += kRowsAtOnce) {
      const int64_t end = std::min(begin + kRowsAtOnce, last);
      for (int64_t t = begin; t < end; ++t) make(t);
      quantize_rows(op.out, begin, end);
    }
  }

  Program program_;
  const CpuKernels& kernels_;
  Team team_;

  // Weights.
  std::map<std::string, Packed> packed_;
  std::map<std::string, const float*> vectors_;
  std::map<std::string, size_t> weight_offsets_;
  std::vector<const Tensor*> to_load_;  // in the order of the file's bytes
  std::vector<Weights> bound_;          // by op
  size_t weights_size_ = 0;
  Memory weights_;

  // KV cache.
  const KvType kv_type_;
  std::vector<Cache> caches_;
  const int64_t pages_;
  size_t page_bytes_ = 0;  // over all caches
  Memory cache_;
  std::vector<float> prefix_;  // keys and values of each attention op, (length, kv_heads * head_dim) each

  // Whether chunks of a context, not only tiles, are spread over the threads. The result is the same either way.
  bool split_context(const std::vector<Tile>& tiles) const {
    return team_.size() > 1 && tiles.size() < 4 * static_cast<size_t>(team_.size()) && chunks(tiles[0].context) > 1;
  }
  static int64_t chunks(int64_t context) { return (context + kChunkTokens - 1) / kChunkTokens; }
  static int64_t group(const Op& op) { return op.heads / op.kv_heads; }
  static int64_t tile_queries(const Op& op, const std::vector<Tile>& tiles) {  // of the largest
    int64_t tokens = 0;
    for (const Tile& t : tiles) tokens = std::max(tokens, t.end - t.begin);
    return tokens * group(op);
  }
  static int64_t max_queries(const Op& op) { return std::max(kTileQueries, group(op)); }
  // Floats that (max, sum, acc) of so many queries take: (M), (M), (M, head_dim).
  static size_t partial_values(const Op& op, int64_t queries) { return align64(queries * (op.head_dim + 2)); }

  // Values of a step.
  BufferPlan plan_;
  std::vector<float*> buffers_;
  int64_t capacity_ = 0;  // rows that values_ has room for
  Memory values_;
  Memory scratch_;  // per thread
  size_t scratch_per_thread_ = 0;
  size_t own_row_ = 0;  // of a thread's scratch: where it rounds a single row
  Memory turns_;        // cos and sin of each rope table: (T, pairs) each
  std::vector<float*> cos_, sin_;
  Memory partials_;  // of attention split over the context

  // Whether the result of an op, a linear, is only read by the swiglu that follows, so that both can be done in one
  // pass over pieces that stay in the cache.
  std::vector<char> feeds_swiglu_;  // by op
  bool done_by_linear(const Op& swiglu) const { return fuse_ && feeds_swiglu_[swiglu.x]; }
  // Of a swiglu that was done with its linear only the rounding is left, and of a single row not even that.
  bool nothing_left(const Op& op) const {
    return op.kind == OpKind::kSwiglu && done_by_linear(op) && rows_of(op.out) == 1;
  }
  static int64_t pieces(int64_t rows, int64_t panels) {  // panels of each half that make 512 KB, at most `panels`
    return std::max<int64_t>(1, std::min(panels, kPieceValues / (2 * kLanes * rows)));
  }

  // Panels of a matrix that a thread begins with. It reads memory fastest in long stretches, but all wait for the last
  // one: so each has a long one, and short ones are taken by whoever is free.
  int64_t first_panels(int64_t panels) const {
    return team_.size() > 1 ? panels * 3 / (4 * team_.size()) / kUnitPanels * kUnitPanels : panels;
  }
  // Calls work(begin, end) for parts of `panels`, until the team has done them all.
  template <class Work>
  void share_panels(int thread, int64_t panels, Work work) {
    const int64_t threads = team_.size(), large = first_panels(panels), shared = threads * large;
    const int64_t small = std::max(kUnitPanels, panels / (threads * 32) / kUnitPanels * kUnitPanels);
    if (large > 0) work(thread * large, (thread + 1) * large);
    for (int64_t task; team_.take((panels - shared + small - 1) / small, &task);)
      work(shared + task * small, std::min(shared + (task + 1) * small, panels));
  }

  // What each thread fetches while it waits for others: the first weights of the next linear.
  struct alignas(64) NextWeights : Ahead {
    int op = -1;
  };
  std::vector<NextWeights> next_weights_{static_cast<size_t>(team_.size())};
  std::vector<int> next_linear_;  // by op: the first linear from it on, or -1; one more at the end
  void wait_after(int op, int thread);

  // The step in progress.
  bool fuse_ = true;  // not while somebody watches every value
  const Step* step_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<std::vector<Tile>> tiles_;  // by attention op's cache
  std::vector<char> bad_;                 // by token: a key, value or logit is not finite
  std::atomic<int> done_{0};
};

void CpuExecutor::plan_weights() {
  std::map<std::string, const Tensor*> matrices, vectors;
  for (const Op& op : program_.ops) {
    auto& kind = op.kind == OpKind::kEmbed || op.kind == OpKind::kLinear ? matrices : vectors;
    for (const Tensor* t : op.w) kind[t->name] = t;
    for (const Tensor* t : op.positions) matrices[t->name] = t;
    for (const Tensor* t : op.bias) vectors[t->name] = t;
    for (const Tensor* t : {op.q_norm, op.k_norm})
      if (t) vectors[t->name] = t;
  }
  for (const auto& [name, t] : matrices) {
    packed_[name] = {t->format, t->shape[0], t->shape[1], nullptr};
    to_load_.push_back(t);
  }
  for (const auto& [name, t] : vectors) {
    if (packed_.count(name)) throw FormatError("'" + name + "' is used both as a matrix and as a vector");
    vectors_[name] = nullptr;
    to_load_.push_back(t);
  }
  std::sort(to_load_.begin(), to_load_.end(), [](const Tensor* a, const Tensor* b) { return lies_before(*a, *b); });
  for (const Tensor* t : to_load_) {
    weight_offsets_[t->name] = weights_size_;
    weights_size_ += align64(packed_.count(t->name) ? packed_bytes(t->format, t->shape[0], t->shape[1])
                                                    : static_cast<size_t>(t->shape[0]) * sizeof(float));
  }
}

void CpuExecutor::plan_cache() {
  for (const Op& op : program_.ops) {
    if (op.kind != OpKind::kAttention) continue;
    Cache c;
    c.kv_heads = op.kv_heads;
    c.head_bytes = glmlite::kv_bytes(kv_type_, op.head_dim);
    c.offset = page_bytes_ * static_cast<size_t>(pages_);
    page_bytes_ += 2 * c.head_bytes * op.kv_heads;
    caches_.push_back(c);
  }
}

void CpuExecutor::plan_values() {
  for (const Op& op : program_.ops) {
    feeds_swiglu_.push_back(false);
    const size_t next = static_cast<size_t>(op.out) + 1;
    if (op.kind != OpKind::kLinear || op.add >= 0 || next >= program_.ops.size()) continue;
    const Op& reader = program_.ops[next];
    bool whole = reader.width % kLanes == 0;  // each half is whole panels
    for (const Tensor* w : op.w) whole &= w->shape[0] % kLanes == 0;
    if (!whole || reader.kind != OpKind::kSwiglu || program_.values[op.out].last_use != reader.out) continue;
    feeds_swiglu_.back() = true;
    // Read while the swiglu's result is already written.
    int& last_use = program_.values[op.x].last_use;
    last_use = std::max(last_use, reader.out);
  }
  plan_ = plan_buffers(
      program_.values, [](int64_t width) { return align64(static_cast<size_t>(width) * sizeof(float)); },
      [](int64_t width) { return align64(static_cast<size_t>(act_bytes(width, 1))); });
  buffers_.resize(plan_.buffers.size());
  next_linear_.assign(program_.ops.size() + 1, -1);
  for (size_t i = program_.ops.size(); i-- > 0;)
    next_linear_[i] = program_.ops[i].kind == OpKind::kLinear ? static_cast<int>(i) : next_linear_[i + 1];
}

void CpuExecutor::load(const LoadProgress& progress) {
  // What a thread does at a time: panels [begin, end) of a matrix, values of a vector; `bytes` of the tensor.
  struct Task {
    const Tensor* tensor;
    int64_t begin, end;
    uint64_t offset, bytes;
  };
  std::vector<Task> tasks;
  uint64_t total = 0, most = 0;
  for (const Tensor* t : to_load_) {
    total += t->bytes;
    uint8_t* at = weights_.data() + weight_offsets_.at(t->name);
    int64_t count, share;  // of panels or blocks; those of a task
    uint64_t bytes;        // of one
    int64_t values = 1;    // of one
    if (const auto it = packed_.find(t->name); it != packed_.end()) {
      it->second.panels = at;
      count = it->second.panel_count();
      share = (count + team_.size() - 1) / team_.size();
      bytes = t->bytes / static_cast<uint64_t>(t->shape[0]) * kLanes;
    } else {
      vectors_[t->name] = reinterpret_cast<const float*>(at);
      const FormatInfo& info = format_info(t->format);
      values = info.block_values;
      share = count = t->shape[0] / values;
      bytes = static_cast<uint64_t>(info.block_bytes);
    }
    const int64_t step = std::min(share, std::max<int64_t>(1, static_cast<int64_t>(kTaskBytes / bytes)));
    for (int64_t begin = 0; begin < count; begin += step) {
      const int64_t end = std::min(begin + step, count);
      const uint64_t from = static_cast<uint64_t>(begin) * bytes;
      tasks.push_back(
          {t, begin * values, end * values, from, std::min(static_cast<uint64_t>(end) * bytes, t->bytes) - from});
      most = std::max(most, tasks.back().bytes);
    }
  }
  const size_t buffer_bytes = align64(static_cast<size_t>(most));
  const Memory buffers(buffer_bytes * static_cast<size_t>(team_.size()), "reading the file");
  TensorReader reader(team_, total, progress);
  reader.report();
  reader.run([&](int thread) {
    uint8_t* rows = buffers.data() + buffer_bytes * static_cast<size_t>(thread);
    for (int64_t i; team_.take(static_cast<int64_t>(tasks.size()), &i);) {
      const Task& task = tasks[static_cast<size_t>(i)];
      const Tensor& t = *task.tensor;
      uint8_t* at = weights_.data() + weight_offsets_.at(t.name);
      reader.read(thread, t, task.offset, task.bytes, rows);
      if (packed_.count(t.name)) {
        pack_panels(t.format, rows, t.shape[0], t.shape[1], task.begin, task.end, at);
      } else {
        dequantize_row(t.format, rows, task.end - task.begin, reinterpret_cast<float*>(at) + task.begin);
      }
    }
  });
  reader.report();
  prefix_ = program_.prefix_values();
  bind_weights();
}

// From here on the file is not needed: its tensors may go.
void CpuExecutor::bind_weights() {
  const auto vector = [&](const Tensor* t) { return t ? vectors_.at(t->name) : nullptr; };
  for (Op& op : program_.ops) {
    Weights b;
    if (op.kind == OpKind::kRmsNorm || op.kind == OpKind::kLayerNorm) {
      b.norm = vector(op.w[0]);
    } else {
      for (const Tensor* t : op.w) b.w.push_back(&packed_.at(t->name));
    }
    for (const Tensor* t : op.bias) b.bias.push_back(vector(t));
    for (const Tensor* t : op.positions) b.positions.push_back(&packed_.at(t->name));
    b.q_norm = vector(op.q_norm);
    b.k_norm = vector(op.k_norm);
    bound_.push_back(b);
    op.w = op.bias = op.positions = {};
    op.q_norm = op.k_norm = op.prefix_k = op.prefix_v = nullptr;
  }
  to_load_ = {};
}

void CpuExecutor::write_prefix(const std::vector<int32_t>& pages) {
  float* from = prefix_.data();
  for (const Op& op : program_.ops) {
    if (op.kind != OpKind::kAttention) continue;
    const Cache& c = caches_[op.cache];
    const int64_t columns = int64_t{op.kv_heads} * op.head_dim;
    float *keys = from, *values = from + program_.prefix * columns;
    from = values + program_.prefix * columns;
    for (int64_t e = 0; e < program_.prefix; ++e) {
      if (!store_kv(c, pages[e / kPageTokens], e % kPageTokens, keys + e * columns, values + e * columns, op.head_dim))
        throw FormatError("the prefix of layer " + std::to_string(op.cache) + " has a value that is not finite");
    }
  }
  prefix_ = {};
}

// Keys and values of all KV heads at one position; q8 turns the keys first, in place.
bool CpuExecutor::store_kv(const Cache& cache, int32_t page, int64_t index, float* keys, const float* values,
                           int64_t head_dim) {
  bool finite = true;
  for (int h = 0; h < cache.kv_heads; ++h) {
    if (kv_type_ == KvType::kQ8) kernels_.rotate(keys + h * head_dim, head_dim);
    finite &= kernels_.store_kv[static_cast<int>(kv_type_)](keys + h * head_dim, values + h * head_dim, head_dim,
                                                            k_page(cache, page, h), v_page(cache, page, h), index);
  }
  return finite;
}

// Makes room for a step: all that may fail for want of memory fails here, before anything is computed.
void CpuExecutor::reserve(const Step& step) {
  const auto rows = static_cast<int64_t>(step.tokens.size());
  if (rows > capacity_) {
    const int64_t capacity = (rows + 15) / 16 * 16;
    size_t row_bytes = 0;
    for (const Buffer& buffer : plan_.buffers) row_bytes += buffer.row_bytes;
    values_.reset();
    capacity_ = 0;
    values_ = Memory(row_bytes * static_cast<size_t>(capacity), "a step of " + std::to_string(rows) + " tokens");
    size_t at = 0;
    for (size_t s = 0; s < buffers_.size(); ++s) {
      buffers_[s] = values_.as<float>(at);
      at += plan_.buffers[s].row_bytes * static_cast<size_t>(capacity);
    }
    size_t pairs = 0;
    for (const RopeTable& r : program_.ropes) pairs += (r.first.size() + 15) / 16 * 16;
    turns_.reset();
    turns_ = Memory(2 * pairs * static_cast<size_t>(capacity) * sizeof(float), "rotary angles");
    cos_.clear();
    sin_.clear();
    float* next = turns_.as<float>();
    for (const RopeTable& r : program_.ropes) {
      const size_t size = (r.first.size() + 15) / 16 * 16 * static_cast<size_t>(capacity);
      cos_.push_back(next);
      sin_.push_back(next + size);
      next += 2 * size;
    }
    size_t scratch = 0, row = 0;
    for (const Op& op : program_.ops) {
      if (op.kind == OpKind::kLinear) {
        const size_t piece = feeds_swiglu_[op.out] ? std::max(kPieceValues, 2 * kLanes * capacity) * sizeof(float) : 0;
        scratch = std::max(scratch, align64(linear_scratch_bytes(capacity)) + piece);
        row = std::max(row, static_cast<size_t>(act_bytes(program_.values[op.x].width, 1)));
      }
      if (!op.positions.empty()) scratch = std::max(scratch, static_cast<size_t>(op.width) * sizeof(float));
      if (op.kind == OpKind::kAttention) {
        // A state, a chunk, pointers to queries with their limits, and what the kernel wants.
        scratch =
            std::max(scratch, 2 * partial_values(op, max_queries(op)) * sizeof(float) + align64(max_queries(op) * 16) +
                                  attend_scratch_bytes(max_queries(op), op.head_dim));
      }
    }
    own_row_ = align64(scratch);
    scratch_per_thread_ = own_row_ + align64(row);
    scratch_.reset();
    scratch_ = Memory(scratch_per_thread_ * team_.size(), "scratch");
    capacity_ = capacity;  // not before all is there
  }

  // Tiles of each attention, and room for partial results where few tiles look at a long context.
  tiles_.assign(caches_.size(), {});
  size_t partials = 0;
  for (const Op& op : program_.ops) {
    if (op.kind != OpKind::kAttention) continue;
    auto& tiles = tiles_[op.cache];
    const int64_t tile_tokens = std::max<int64_t>(1, kTileQueries / group(op));
    int64_t longest = 0;
    for (const Run& run : step.runs) {
      for (int64_t begin = run.begin; begin < run.end; begin += tile_tokens) {
        const int64_t end = std::min(begin + tile_tokens, run.end);
        const int64_t context = *std::max_element(step.visible.begin() + begin, step.visible.begin() + end);
        longest = std::max(longest, context);
        for (int h = 0; h < op.kv_heads; ++h) tiles.push_back({begin, end, &run, h, context});
      }
    }
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) { return a.context > b.context; });
    if (split_context(tiles))
      partials = std::max(
          partials, tiles.size() * partial_values(op, tile_queries(op, tiles)) * static_cast<size_t>(chunks(longest)));
  }
  if (partials * sizeof(float) > partials_.size()) {
    partials_.reset();
    partials_ = Memory(partials * sizeof(float), "attention over a long context");
  }
}

Activations CpuExecutor::activations(int id, int thread) const {
  const int buffer = plan_.values[id].quantized;
  if (buffer < 0) return {value(id), nullptr};
  if (rows_of(id) > 1) return {value(id), reinterpret_cast<const uint8_t*>(buffers_[buffer])};
  uint8_t* row = scratch_.data() + scratch_per_thread_ * thread + own_row_;
  kernels_.quantize(value(id), program_.values[id].width, 0, 1, 1, row);
  return {value(id), row};
}

StepResult CpuExecutor::run(const Step& step, const CancelFlag* cancel, const Watch* watch) {
  reserve(step);
  step_ = &step;
  fuse_ = watch == nullptr;
  tokens_ = static_cast<int64_t>(step.tokens.size());
  bad_.assign(step.tokens.size(), 0);
  done_.store(0, std::memory_order_relaxed);
  // The op after which all threads leave. Thread 0 sets it before a barrier; a slower thread compares with its own op,
  // so that it does not matter if thread 0 is already one op further.
  std::atomic<int> leave_after{-1};
  team_.run([&](int thread) {
    make_turns(thread);
    wait_after(-1, thread);
    for (const Op& op : program_.ops) {
      if (nothing_left(op)) {
        if (thread == 0) done_.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      if (rows_of(op.out) > 0) run_op(op, thread);
      if (thread == 0) {
        if (cancel && cancel->set.load(std::memory_order_relaxed)) leave_after.store(op.out, std::memory_order_relaxed);
        done_.fetch_add(1, std::memory_order_relaxed);
      }
      wait_after(op.out, thread);
      if (leave_after.load(std::memory_order_relaxed) == op.out) return;
      if (watch) {
        if (thread == 0) (*watch)(op.out, value(op.out), rows_of(op.out), op.width);
        team_.barrier();
      }
    }
    each_row(thread, rows_of(program_.ops.back().out), [&](int64_t r) {
      if (!all_finite(value(program_.ops.back().out) + r * program_.vocab, program_.vocab))
        bad_[program_.selects ? step.rows[r] : r] = 1;
    });
  });
  step_ = nullptr;
  if (leave_after.load() >= 0) throw Cancelled("the step was cancelled");
  const auto bad = std::find(bad_.begin(), bad_.end(), 1);
  return {value(program_.ops.back().out), {}, bad == bad_.end() ? -1 : bad - bad_.begin()};
}

// cos and sin of every rotary pair at every token's position. Angles in f64, so that long positions keep their bits.
void CpuExecutor::make_turns(int thread) {
  for (size_t i = 0; i < program_.ropes.size(); ++i) {
    const RopeTable& r = program_.ropes[i];
    const size_t pairs = r.first.size();
    each_row(thread, tokens_, [&](int64_t t) {
      for (size_t p = 0; p < pairs; ++p) {
        const double angle = r.freq[p] * step_->positions[r.axis[p]][t];
        cos_[i][t * pairs + p] = static_cast<float>(std::cos(angle) * r.magnitude);
        sin_[i][t * pairs + p] = static_cast<float>(std::sin(angle) * r.magnitude);
      }
    });
  }
}

void CpuExecutor::run_op(const Op& op, int thread) {
  const int64_t rows = rows_of(op.out);
  const int64_t width = op.width;
  float* y = value(op.out);
  switch (op.kind) {
    case OpKind::kInput:
      each_row(thread, rows,
               [&](int64_t t) { std::memcpy(y + t * width, step_->input + t * width, width * sizeof(float)); });
      break;
    case OpKind::kEmbed:
      embed(op, thread);
      return;
    case OpKind::kRmsNorm: {
      const float *x = value(op.x), *add = op.add >= 0 ? value(op.add) : nullptr;
      make_rows(op, thread, [&](int64_t t) {
        kernels_.rms_norm(x + t * width, weights(op).norm, add ? add + t * width : nullptr, y + t * width, width,
                          op.eps);
      });
      return;
    }
    case OpKind::kLayerNorm:
      make_rows(op, thread, [&](int64_t t) {
        kernels_.layer_norm(value(op.x) + t * width, weights(op).norm, weights(op).bias[0], y + t * width, width,
                            op.eps);
      });
      return;
    case OpKind::kSwiglu:
      make_rows(op, thread, [&](int64_t t) {
        if (done_by_linear(op)) return;
        kernels_.swiglu(value(op.x) + t * 2 * width, y + t * width, width);
      });
      return;
    case OpKind::kGelu:
      make_rows(op, thread, [&](int64_t t) { kernels_.gelu(value(op.x) + t * width, y + t * width, width); });
      return;
    case OpKind::kSelect:
      make_rows(op, thread, [&](int64_t r) {
        std::memcpy(y + r * width, value(op.x) + step_->rows[r] * width, width * sizeof(float));
      });
      return;
    case OpKind::kLinear:
      if (fuse_ && feeds_swiglu_[op.out]) {
        linear_swiglu(op, program_.ops[op.out + 1], thread);
      } else {
        linear(op, thread);
      }
      break;
    case OpKind::kAttention:
      attention(op, thread);
      break;
  }
  // Parts of a row are written by several threads: it is whole only after a barrier.
  if (plan_.values[op.out].quantized >= 0 && rows > 1) {
    wait_after(op.out, thread);
    quantize_rows(op.out, first_row(thread, rows), first_row(thread + 1, rows));
  }
}

void CpuExecutor::embed(const Op& op, int thread) {
  const Packed& table = *weights(op).w[0];
  float* y = value(op.out);
  make_rows(op, thread, [&](int64_t t) {
    float* row = y + t * op.width;
    kernels_.unpack_row[static_cast<int>(table.format)](table.panels, table.k, step_->tokens[t], row);
    auto* added = reinterpret_cast<float*>(scratch_.data() + scratch_per_thread_ * thread);
    for (size_t a = 0; a < weights(op).positions.size(); ++a) {
      const Packed& p = *weights(op).positions[a];
      kernels_.unpack_row[static_cast<int>(p.format)](p.panels, p.k, step_->positions[a][t], added);
      kernels_.add(row, added, op.width);
    }
  });
}

// A barrier, after an op or in it.
void CpuExecutor::wait_after(int op, int thread) {
  if (tokens_ > kMemoryBoundRows) return team_.barrier();
  NextWeights& next = next_weights_[thread];
  const int linear = next_linear_[op + 1];
  if (next.op != linear) {
    next = {};
    next.op = linear;
    int64_t panels = 0;
    if (linear >= 0) {
      for (const Packed* w : bound_[linear].w) panels += w->panel_count();
      if (fuse_ && feeds_swiglu_[linear]) panels /= 2;
      int64_t first = thread * first_panels(panels);
      for (const Packed* w : bound_[linear].w) {
        if (first < w->panel_count()) {
          const size_t size = packed_bytes(w->format, w->n, w->k), bytes = size / w->panel_count();
          next.begin = w->panels + first * bytes;
          next.end = std::min(w->panels + size, next.begin + std::min(first_panels(panels) * bytes, kAheadBytes));
          break;
        }
        first -= w->panel_count();
      }
    }
  }
  team_.barrier(&next);
}

// The op's panels [begin, end), counted over all of its matrices: column c of its result goes to y[t * stride + c -
// first].
void CpuExecutor::multiply(const Op& op, const Activations& act, int64_t begin, int64_t end, float* y, int64_t stride,
                           int64_t first, int thread) {
  const int64_t rows = rows_of(op.out);
  int64_t column = 0;
  for (size_t i = 0; i < weights(op).w.size(); ++i) {
    const Packed& w = *weights(op).w[i];
    const int64_t from = std::max<int64_t>(begin, 0), to = std::min(end, w.panel_count());
    if (from < to) {
      LinearArgs args;
      args.panels = w.panels;
      args.k = w.k;
      args.n = w.n;
      args.panel_begin = from;
      args.panel_end = to;
      args.act = act;
      args.tokens = rows;
      args.y = y + (column - first);
      args.y_stride = stride;
      if (!weights(op).bias.empty()) args.bias = weights(op).bias[i];
      if (op.add >= 0) {
        args.add = value(op.add) + column;
        args.add_stride = op.width;
        args.alpha = op.alpha;
      }
      args.scratch = scratch_.data() + scratch_per_thread_ * thread;
      kernels_.linear[static_cast<int>(w.format)](args);
    }
    begin -= w.panel_count();
    end -= w.panel_count();
    column += w.n;
  }
}

void CpuExecutor::linear(const Op& op, int thread) {
  int64_t panels = 0;
  for (const Packed* w : weights(op).w) panels += w->panel_count();
  const Activations act = activations(op.x, thread);
  share_panels(thread, panels,
               [&](int64_t begin, int64_t end) { multiply(op, act, begin, end, value(op.out), op.width, 0, thread); });
}

void CpuExecutor::linear_swiglu(const Op& op, const Op& next, int thread) {
  const int64_t rows = rows_of(op.out), panels = next.width / kLanes;
  auto* piece = reinterpret_cast<float*>(scratch_.data() + scratch_per_thread_ * thread +
                                         align64(linear_scratch_bytes(capacity_)));
  const Activations act = activations(op.x, thread);
  share_panels(thread, panels, [&](int64_t from, int64_t to) {
    const int64_t step = pieces(rows, to - from);
    for (int64_t begin = from; begin < to; begin += step) {
      const int64_t end = std::min(begin + step, to), columns = (end - begin) * kLanes;
      multiply(op, act, begin, end, piece, 2 * columns, begin * kLanes, thread);
      multiply(op, act, panels + begin, panels + end, piece + columns, 2 * columns, (panels + begin) * kLanes, thread);
      for (int64_t t = 0; t < rows; ++t)
        kernels_.swiglu(piece + t * 2 * columns, value(next.out) + t * next.width + begin * kLanes, columns);
    }
  });
}

void CpuExecutor::attention(const Op& op, int thread) {
  turn_and_store(op, thread);
  wait_after(op.out, thread);
  const auto& tiles = tiles_[op.cache];
  uint8_t* scratch = scratch_.data() + scratch_per_thread_ * thread;
  int64_t task;
  if (!split_context(tiles)) {
    while (team_.take(static_cast<int64_t>(tiles.size()), &task)) attend_tile(op, tiles[task], scratch);
    return;
  }
  const int64_t longest = chunks(tiles[0].context);
  const size_t stride = partial_values(op, tile_queries(op, tiles));
  const auto count = static_cast<int64_t>(tiles.size());
  // A thread takes its next task before it does one, so that it knows which keys to fetch meanwhile.
  for (bool more = team_.take(count * longest, &task); more;) {
    const Tile& tile = tiles[task / longest];
    const int64_t chunk = task % longest;
    int64_t next;
    more = team_.take(count * longest, &next);
    const uint8_t* ahead[kChunkPages];
    find_pages(op, more ? tiles[next / longest] : tile, more ? next % longest : chunk, ahead, nullptr);
    if (chunk < chunks(tile.context))
      attend_chunk(op, tile, chunk, ahead, partials_.as<float>() + task * stride, scratch);
    task = next;
  }
  wait_after(op.out, thread);
  while (team_.take(count, &task)) merge_tile(op, tiles[task], partials_.as<float>() + task * longest * stride, stride);
}

void CpuExecutor::turn_and_store(const Op& op, int thread) {
  float* qkv = value(op.x);
  const int64_t width = program_.values[op.x].width;
  const Cache& cache = caches_[op.cache];
  RopePairs pairs{nullptr, nullptr, 0};
  if (op.rope >= 0) {
    const RopeTable& r = program_.ropes[op.rope];
    pairs = {r.first.data(), r.second.data(), static_cast<int64_t>(r.first.size())};
  }
  auto run = step_->runs.begin();
  each_row(thread, tokens_, [&](int64_t t) {
    while (t >= run->end) ++run;
    float* row = qkv + t * width;
    for (int h = 0; h < op.heads + op.kv_heads; ++h) {
      float* head = row + int64_t{h} * op.head_dim;
      if (const float* norm = h < op.heads ? weights(op).q_norm : weights(op).k_norm)
        kernels_.rms_norm(head, norm, nullptr, head, op.head_dim, op.eps);
      if (op.rope >= 0) kernels_.rope(head, pairs, cos_[op.rope] + t * pairs.count, sin_[op.rope] + t * pairs.count);
      if (kv_type_ == KvType::kQ8 && h < op.heads) kernels_.rotate(head, op.head_dim);
    }
    const int64_t entry = step_->entry[t];
    const int32_t page = run->pages[entry / kPageTokens];
    float* keys = row + int64_t{op.heads} * op.head_dim;
    if (!store_kv(cache, page, entry % kPageTokens, keys, keys + int64_t{op.kv_heads} * op.head_dim, op.head_dim))
      bad_[t] = 1;
  });
}

// The pages of a chunk; beyond the context, the last again. v may be null.
void CpuExecutor::find_pages(const Op& op, const Tile& tile, int64_t chunk, const uint8_t** k,
                             const uint8_t** v) const {
  const int64_t last = (tile.context - 1) / kPageTokens;
  for (int64_t i = 0; i < kChunkPages; ++i) {
    const int32_t page = tile.run->pages[std::min(chunk * kChunkPages + i, last)];
    k[i] = k_page(caches_[op.cache], page, tile.kv_head);
    if (v) v[i] = v_page(caches_[op.cache], page, tile.kv_head);
  }
}

// (max, sum, acc) of the tile's queries over one chunk, into out; meanwhile the keys `ahead` are fetched.
void CpuExecutor::attend_chunk(const Op& op, const Tile& tile, int64_t chunk, const uint8_t* const* ahead, float* out,
                               uint8_t* scratch) {
  const int64_t queries = (tile.end - tile.begin) * group(op);
  const int64_t width = program_.values[op.x].width;
  auto** q = reinterpret_cast<const float**>(scratch);
  auto* visible = reinterpret_cast<int64_t*>(scratch + queries * sizeof *q);
  int64_t i = 0;
  for (int64_t t = tile.begin; t < tile.end; ++t) {
    for (int64_t g = 0; g < group(op); ++g, ++i) {
      q[i] = value(op.x) + t * width + (tile.kv_head * group(op) + g) * op.head_dim;
      visible[i] = step_->visible[t];
    }
  }
  const uint8_t *k[kChunkPages], *v[kChunkPages];
  find_pages(op, tile, chunk, k, v);
  AttendArgs args;
  args.begin = chunk * kChunkTokens;
  args.end = std::min(args.begin + kChunkTokens, tile.context);
  args.q = q;
  args.queries = queries;
  args.head_dim = op.head_dim;
  args.scale = op.scale;
  args.k = k;
  args.v = v;
  args.ahead = ahead;
  args.visible = visible;
  args.max = out;
  args.sum = out + queries;
  args.acc = out + 2 * queries;
  args.scratch = scratch + align64(max_queries(op) * 16);
  kernels_.attend[static_cast<int>(kv_type_)](args);
}

void CpuExecutor::attend_tile(const Op& op, const Tile& tile, uint8_t* scratch) {
  const int64_t queries = (tile.end - tile.begin) * group(op);
  auto* state = reinterpret_cast<float*>(scratch);
  float* chunk = state + partial_values(op, max_queries(op));
  scratch = reinterpret_cast<uint8_t*>(chunk + partial_values(op, max_queries(op)));
  const uint8_t* ahead[kChunkPages];
  for (int64_t c = 0; c < chunks(tile.context); ++c) {
    find_pages(op, tile, std::min(c + 1, chunks(tile.context) - 1), ahead, nullptr);
    attend_chunk(op, tile, c, ahead, c == 0 ? state : chunk, scratch);
    for (int64_t i = 0; c > 0 && i < queries; ++i)
      kernels_.attend_merge(state + i, state + queries + i, state + 2 * queries + i * op.head_dim, chunk[i],
                            chunk[queries + i], chunk + 2 * queries + i * op.head_dim, op.head_dim);
  }
  finish_tile(op, tile, state);
}

// Finishes a tile from chunks that were computed before, chunk c's partial result at parts + c * stride.
void CpuExecutor::merge_tile(const Op& op, const Tile& tile, float* parts, size_t stride) {
  const int64_t queries = (tile.end - tile.begin) * group(op);
  float* state = parts;
  for (int64_t c = 1; c < chunks(tile.context); ++c) {
    const float* chunk = parts + c * stride;
    for (int64_t i = 0; i < queries; ++i)
      kernels_.attend_merge(state + i, state + queries + i, state + 2 * queries + i * op.head_dim, chunk[i],
                            chunk[queries + i], chunk + 2 * queries + i * op.head_dim, op.head_dim);
  }
  finish_tile(op, tile, state);
}

void CpuExecutor::finish_tile(const Op& op, const Tile& tile, const float* state) {
  const int64_t queries = (tile.end - tile.begin) * group(op);
  int64_t i = 0;
  for (int64_t t = tile.begin; t < tile.end; ++t) {
    float* y = value(op.out) + t * op.width + tile.kv_head * group(op) * op.head_dim;
    for (int64_t g = 0; g < group(op); ++g, ++i)
      kernels_.attend_finish(state + 2 * queries + i * op.head_dim, state[queries + i], y + g * op.head_dim,
                             op.head_dim);
  }
}

}  // namespace

std::unique_ptr<Executor> make_cpu_executor(Program program, const ExecutorOptions& options,
                                            const LoadProgress& progress) {
  if (options.device >= 0) throw std::invalid_argument("device: " + std::to_string(options.device) + ", expected -1");
  return std::make_unique<CpuExecutor>(std::move(program), options, progress);
}

}  // namespace glmlite
