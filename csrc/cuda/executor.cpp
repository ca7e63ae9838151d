// Runs a program on one GPU: packs the weights, keeps the KV pages, launches the ops on one stream.
//
// Memory is planned once (plan.h): weights and KV pages in one block, a step's values in another, which grows only for
// steps larger than foreseen. A step's state goes over in one transfer, its logits and flags come back. Steps of few
// tokens are captured as graphs, one for each size, and replayed: their state is read from device memory.
#include "executor.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "../cpu/team.h"
#include "../dequantize.h"
#include "../errors.h"
#include "../tensor_reader.h"
#include "device.h"
#include "plan.h"

namespace glmlite::cuda {

namespace {

constexpr size_t kReserve = size_t{128} << 20;
constexpr size_t kStageBytes = size_t{16} << 20;  // of each of two buffers that weights go through
constexpr size_t kGraphs = 64;                    // kept at most; then all are made anew
constexpr int kMeasurements = 8;                  // of a step

std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

class OwnStream {
 public:
  OwnStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  ~OwnStream() {
    cudaStreamSynchronize(stream_);  // buffers in use go after this
    cudaStreamDestroy(stream_);
  }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A step that was captured. Without `exec` it ran once: what a kernel's first launch loads must not be captured.
struct Graph {
  cudaGraphExec_t exec = nullptr;
  Graph() = default;
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

// While it lives, kernels may be launched ahead, or not.
struct Ahead {
  explicit Ahead(bool allow) { allow_launching_ahead(allow); }
  ~Ahead() { allow_launching_ahead(true); }
};

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(Program program, const ExecutorOptions& options, const LoadProgress& progress)
      : program_(std::move(program)),
        device_(use_device(options.device)),
        plan_(program_, options.pages, options.kv_type) {
    name_ = "cuda:" + std::to_string(device_.index) + " " + device_.name + " sm_" + std::to_string(device_.major) +
            std::to_string(device_.minor);
    kv_type_ = options.kv_type;
    guarded([&] {
      stream_.emplace();
      arena_ = DeviceMemory(plan_.weight_bytes + plan_.kv_bytes, name_ + ": weights and KV cache");
      check(cudaMemsetAsync(arena_.data() + plan_.weight_bytes, 0, plan_.kv_bytes, *stream_), "an empty KV cache");
      reserve(plan_.largest());
      host_logits_ = PinnedMemory(static_cast<size_t>(kStepRows * program_.vocab) * sizeof(float));
      probe();
      bind_ropes();
      load(options.threads, progress);
      for (Weight& w : program_.weights) w.tensor = nullptr;  // the file may go
    });
  }
  ~CudaExecutor() override { cudaSetDevice(device_.index); }

  StepResult run(const Step& step, const CancelFlag* cancel, const Watch* watch) override {
    StepResult result;
    guarded([&] { result = run_step(step, cancel, watch); });
    return result;
  }
  void copy_page(int32_t from, int32_t to) override {
    guarded([&] {
      for (size_t c = 0; c < plan_.cache_offsets.size(); ++c) {
        const size_t bytes = plan_.cache_page_bytes[c];
        uint8_t* pages = cache(static_cast<int>(c));
        check(cudaMemcpyAsync(pages + static_cast<size_t>(to) * bytes, pages + static_cast<size_t>(from) * bytes, bytes,
                              cudaMemcpyDeviceToDevice, *stream_),
              "copying a page");
      }
    });
  }
  void write_prefix(const std::vector<int32_t>& pages) override {
    guarded([&] { store(pages); });
  }
  StepTimes measure(int64_t context);
  size_t weight_bytes() const override { return plan_.weight_bytes; }
  size_t kv_bytes() const override { return plan_.kv_bytes; }
  size_t scratch_bytes() const override { return scratch_memory_.size(); }
  void release() override;
  int threads() const override { return 1; }
  const char* isa() const override { return name_.c_str(); }
  double progress() const override {
    return static_cast<double>(done_.load(std::memory_order_relaxed)) / static_cast<double>(program_.ops.size());
  }

 private:
  // The size of a step: all that its launches depend on.
  struct Shape {
    int64_t tokens, rows, runs, context;
    std::vector<int64_t> tiles;  // by kind of tile
    int64_t draws, adjustments;  // rows that are drawn from, and room for adjustments of each
    bool greedy;
    int64_t given;  // rows of embeddings
    auto tie() const { return std::tie(tokens, rows, runs, context, tiles, draws, adjustments, greedy, given); }
    bool operator<(const Shape& o) const { return tie() < o.tie(); }
  };
  // Where the parts of a step's state lie in its upload, in bytes.
  struct Upload {
    size_t tokens, positions[kAxes], entry, visible, run, rows, pages, draws, adjustments, bad, drawn, given, bytes;
    std::vector<size_t> tiles;   // by kind of tile
    std::vector<size_t> inputs;  // by op that is one, in the program's order
  };

  template <class Fn>
  void guarded(const Fn& fn);
  void settle() noexcept;
  void probe();
  void bind_ropes();
  void load(int threads, const LoadProgress& progress);
  void store(const std::vector<int32_t>& pages);
  void reserve(const Plan::StepSize& size);

  StepResult run_step(const Step& step, const CancelFlag* cancel, const Watch* watch);
  void lay_out(const Step& step);
  void fill(const Step& step, uint8_t* to) const;
  void replay();
  using AfterOp = std::function<void(const Op&)>;
  void capture(Graph& graph, const AfterOp& after);
  void capture_step(Graph& graph, const AfterOp& after);
  void enqueue(const CancelFlag* cancel, const Watch* watch, const AfterOp& after = {});
  void launch(const Op& op, bool alone);
  // Each launches an op's kernels; with `next`, those that do the next op with it.
  void make(const Op& op, const ops::Input& kind, const Op* next);
  void make(const Op& op, const ops::Embed& kind, const Op* next);
  void make(const Op& op, const ops::RmsNorm& kind, const Op* next);
  void make(const Op& op, const ops::LayerNorm& kind, const Op* next);
  void make(const Op& op, const ops::Linear& kind, const Op* next);
  void make(const Op& op, const ops::Attention& kind, const Op* next);
  void make(const Op& op, const ops::Swiglu& kind, const Op* next);
  void make(const Op& op, const ops::Gelu& kind, const Op* next);
  void make(const Op& op, const ops::GeluErf& kind, const Op* next);
  void make(const Op& op, const ops::Select& kind, const Op* next);
  template <class Kind>
  void make(const Op&, const Kind&, const Op*) {}  // the plan has refused the others
  void draw();
  void fetch_logits(const Step& step, const std::vector<int32_t>& tokens);

  const uint8_t* weight(int index) const { return arena_.data() + plan_.weights.at(index).offset; }
  const float* vector(int index) const { return index < 0 ? nullptr : reinterpret_cast<const float*>(weight(index)); }
  Matrix matrix(int index) const {
    const Weight& w = program_.weights[index];
    return {w.format, w.n, w.k, weight(index)};
  }
  uint8_t* cache(int index) const { return arena_.data() + plan_.weight_bytes + plan_.cache_offsets[index]; }
  uint8_t* scratch(size_t offset) const { return scratch_memory_.data() + offset; }
  float* value(int id) const {
    if (const int input = plan_.inputs[id]; input >= 0) return reinterpret_cast<float*>(scratch(upload_.inputs[input]));
    return reinterpret_cast<float*>(scratch(scratch_.buffers[plan_.buffers.values[id].plain]));
  }
  uint8_t* blocks(int id) const {
    const int buffer = plan_.buffers.values[id].quantized;
    return buffer < 0 ? nullptr : scratch(scratch_.buffers[buffer]);
  }
  int32_t logits_row(const Step& step, size_t i) const {
    return program_.selects() ? static_cast<int32_t>(i) : step.rows[i];
  }
  int64_t rows_of(int id) const { return program_.values[id].selected ? shape_.rows : shape_.tokens; }
  const int32_t* numbers(size_t offset) const { return reinterpret_cast<const int32_t*>(scratch(offset)); }
  float* turns(int rope) const { return reinterpret_cast<float*>(scratch(scratch_.turns[rope])); }

  Program program_;
  const DeviceInfo device_;
  const Plan plan_;
  std::string name_;
  KvType kv_type_;
  std::string lost_;  // why nothing can be run any more; empty while it can

  DeviceMemory arena_;           // weights, then KV pages
  DeviceMemory scratch_memory_;  // a step's state and values, as scratch_ says
  Plan::Scratch scratch_;
  Plan::StepSize room_{0, 0, 0, 0, 0};
  PinnedMemory host_upload_;
  PinnedMemory host_logits_;         // of the usual number of rows
  Memory many_logits_;               // of more
  PinnedMemory host_results_;        // flags of tokens that are bad, then the tokens drawn
  std::optional<OwnStream> stream_;  // goes before the memory, which whatever still runs uses

  std::vector<Rope> ropes_;
  std::vector<int64_t> tile_tokens_;  // distinct sizes of tiles, of this step
  std::vector<int> tile_kind_;        // by cache: index into tile_tokens_
  std::vector<float> prefix_;         // keys and values of each attention op, (length, kv_heads * head_dim) each
  std::map<Shape, Graph> graphs_;

  // The step in progress.
  Shape shape_;
  Upload upload_;
  std::vector<size_t> drawn_;  // indices of the step's rows that are drawn from
  StepState state_;
  float* logits_ = nullptr;  // host
  std::atomic<int> done_{0};
};

// Runs `fn` on this executor's device. Whatever fails leaves the stream empty; if the device does not recover, this and
// all later calls say so.
template <class Fn>
void CudaExecutor::guarded(const Fn& fn) {
  if (!lost_.empty()) throw std::runtime_error(lost_);
  try {
    check(cudaSetDevice(device_.index), "choosing the GPU");
    fn();
  } catch (...) {
    settle();
    if (!lost_.empty()) throw std::runtime_error(lost_);
    throw;
  }
}

void CudaExecutor::settle() noexcept {
  if (!stream_) return;
  cudaStreamCaptureStatus status;
  if (cudaStreamIsCapturing(*stream_, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(*stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
  }
  cudaGetLastError();
  const cudaError_t error = cudaStreamSynchronize(*stream_);
  if (error == cudaSuccess) return;
  lost_ = name_ + ": the GPU failed and the model on it is lost: " + cudaGetErrorString(error) + " (" +
          cudaGetErrorName(error) + "); load it again, in a new process if that fails too";
}

// One small kernel, so that a GPU that this build has no kernels for is found before the weights are read.
void CudaExecutor::probe() {
  try {
    check(cudaMemsetAsync(scratch_memory_.data(), 0, 256, *stream_), "a first transfer");
    check_finite(reinterpret_cast<float*>(scratch_memory_.data()), 1, 1, nullptr,
                 reinterpret_cast<int32_t*>(scratch_memory_.data() + 128), *stream_);
    check(cudaStreamSynchronize(*stream_), "a first kernel");
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(name_ + ": kernels of this build do not run on it: " + error.what());
  }
}

void CudaExecutor::bind_ropes() {
  for (size_t i = 0; i < program_.ropes.size(); ++i) {
    const RopeTable& r = program_.ropes[i];
    uint8_t* at = arena_.data() + plan_.rope_offsets[i];
    const auto put = [&](const auto& list) {
      const size_t bytes = list.size() * sizeof list[0];
      check(cudaMemcpyAsync(at, list.data(), bytes, cudaMemcpyHostToDevice, *stream_), "rotary tables");
      const uint8_t* begin = at;
      at += align256(bytes);
      return begin;
    };
    Rope rope{};
    rope.freq = reinterpret_cast<const double*>(put(r.freq));
    rope.first = reinterpret_cast<const int32_t*>(put(r.first));
    rope.second = reinterpret_cast<const int32_t*>(put(r.second));
    rope.axis = reinterpret_cast<const int32_t*>(put(r.axis));
    rope.magnitude = r.magnitude;
    rope.pairs = static_cast<int64_t>(r.first.size());
    ropes_.push_back(rope);
  }
  check(cudaStreamSynchronize(*stream_), "rotary tables");
}

// While one buffer is on its way to the GPU, threads read the file and pack into the other.
void CudaExecutor::load(int threads, const LoadProgress& progress) {
  Team team(threads > 0 ? threads : default_threads());
  TensorReader reader(team, program_.file_bytes(), progress);
  reader.report();
  size_t stage_bytes = kStageBytes, buffer_bytes = 0;
  for (const int index : plan_.weights.order()) {
    const Weight& w = program_.weights[index];
    const bool vector = w.role == Role::kVector;
    const size_t least =
        vector ? static_cast<size_t>(w.n) * sizeof(float) : packed_offset(w.format, w.n, w.k, std::min(kPackRows, w.n));
    stage_bytes = std::max(stage_bytes, least);
    const auto rows = static_cast<uint64_t>(vector ? 1 : std::min(kPackRows, w.n));
    const auto pieces = static_cast<uint64_t>(vector ? 1 : w.n);
    buffer_bytes = std::max(buffer_bytes, static_cast<size_t>(w.tensor->bytes / pieces * rows));
  }
  const Memory buffers(align256(buffer_bytes) * static_cast<size_t>(team.size()), "reading the file");
  const auto buffer = [&](int thread) { return buffers.data() + align256(buffer_bytes) * static_cast<size_t>(thread); };
  PinnedMemory stages[2] = {PinnedMemory(stage_bytes), PinnedMemory(stage_bytes)};
  Event sent[2];
  int turn = 0;
  // Waits until a buffer is free, lets `make` write it, and sends what it wrote to `offset` of the arena.
  const auto transfer = [&](size_t offset, size_t bytes, const auto& make) {
    sent[turn].wait();
    make(stages[turn].data());
    check(cudaMemcpyAsync(arena_.data() + offset, stages[turn].data(), bytes, cudaMemcpyHostToDevice, *stream_),
          "sending weights");
    sent[turn].record(*stream_);
    turn ^= 1;
  };
  // Also if the load ends early: the buffers go before the stream does.
  struct Drain {
    cudaStream_t stream;
    ~Drain() { cudaStreamSynchronize(stream); }
  } drain{*stream_};

  for (const int index : plan_.weights.order()) {
    const Weight& w = program_.weights[index];
    const Tensor& t = *w.tensor;
    const size_t offset = plan_.weights.at(index).offset;
    const int64_t n = w.n, k = w.k;
    if (w.role == Role::kVector) {
      transfer(offset, static_cast<size_t>(n) * sizeof(float), [&](uint8_t* stage) {
        reader.read(0, t, 0, t.bytes, buffer(0));
        dequantize_row(t.format, buffer(0), n, reinterpret_cast<float*>(stage));
      });
      continue;
    }
    const uint64_t row_bytes = t.bytes / static_cast<uint64_t>(n);
    const auto packed = [&](int64_t row) { return packed_offset(t.format, n, k, row); };
    const auto groups = static_cast<int64_t>(stage_bytes / packed(std::min(kPackRows, n)));
    const int64_t round = std::max<int64_t>(1, groups) * kPackRows;
    for (int64_t begin = 0; begin < n; begin += round) {
      const int64_t end = std::min(begin + round, n), tasks = (end - begin + kPackRows - 1) / kPackRows;
      transfer(offset + packed(begin), packed(end) - packed(begin), [&](uint8_t* stage) {
        reader.run([&](int thread) {
          for (int64_t task; team.take(tasks, &task);) {
            const int64_t first = begin + task * kPackRows, last = std::min(first + kPackRows, end);
            reader.read(thread, t, static_cast<uint64_t>(first) * row_bytes,
                        static_cast<uint64_t>(last - first) * row_bytes, buffer(thread));
            pack_rows(t.format, buffer(thread), n, k, first, last, stage + (packed(first) - packed(begin)));
          }
        });
      });
    }
  }
  reader.report();
  prefix_ = program_.prefix_values();
  check(cudaStreamSynchronize(*stream_), "sending weights");
}

void CudaExecutor::store(const std::vector<int32_t>& pages) {
  DeviceMemory rows(prefix_.size() * sizeof(float), name_ + ": the prefix");
  DeviceMemory table(pages.size() * sizeof(int32_t), name_ + ": the prefix");
  DeviceMemory bad(plan_.attentions.size() * sizeof(int32_t), name_ + ": the prefix");
  check(cudaMemcpyAsync(rows.data(), prefix_.data(), rows.size(), cudaMemcpyHostToDevice, *stream_), "the prefix");
  check(cudaMemcpyAsync(table.data(), pages.data(), table.size(), cudaMemcpyHostToDevice, *stream_), "the prefix");
  check(cudaMemsetAsync(bad.data(), 0, bad.size(), *stream_), "the prefix");
  const auto* from = reinterpret_cast<const float*>(rows.data());
  auto* flags = reinterpret_cast<int32_t*>(bad.data());
  for (int c = 0; c < program_.layers(); ++c) {
    const CacheShape& shape = program_.caches[c];
    const int64_t values = program_.prefix * shape.heads * shape.key_dim;
    store_prefix(from, from + values, program_.prefix, {kv_type_, shape.heads, shape.key_dim, cache(c)},
                 reinterpret_cast<const int32_t*>(table.data()), flags + c, *stream_);
    from += 2 * values;
  }
  std::vector<int32_t> found(plan_.attentions.size());
  check(cudaMemcpyAsync(found.data(), flags, bad.size(), cudaMemcpyDeviceToHost, *stream_), "the prefix");
  check(cudaStreamSynchronize(*stream_), "the prefix");
  for (size_t i = 0; i < found.size(); ++i)
    if (found[i]) throw FormatError("the prefix of layer " + std::to_string(i) + " has a value that is not finite");
  prefix_ = {};
}

void CudaExecutor::release() {
  guarded([&] {
    check(cudaStreamSynchronize(*stream_), "giving memory back");
    graphs_.clear();  // they have addresses in it
    room_ = {0, 0, 0, 0, 0};
    scratch_memory_.reset();
    many_logits_.reset();
  });
}

// Makes room for a step, besides what there is room for already.
void CudaExecutor::reserve(const Plan::StepSize& size) {
  if (size.tokens <= room_.tokens && size.rows <= room_.rows && size.draws <= room_.draws &&
      size.upload <= room_.upload && size.partials <= room_.partials)
    return;
  const Plan::StepSize room{std::max(size.tokens, room_.tokens), std::max(size.rows, room_.rows),
                            std::max(size.draws, room_.draws), std::max(size.upload, room_.upload),
                            std::max(size.partials, room_.partials)};
  graphs_.clear();  // they have addresses in them
  room_ = {0, 0, 0, 0, 0};
  scratch_memory_.reset();
  scratch_ = plan_.scratch(room);
  scratch_memory_ = DeviceMemory(scratch_.bytes, name_ + ": a step of " + std::to_string(size.tokens) + " tokens");
  if (host_upload_.size() < room.upload) host_upload_ = PinnedMemory(room.upload);
  const size_t results = static_cast<size_t>(room.tokens + 3 + room.draws) * sizeof(int32_t);
  if (host_results_.size() < results) host_results_ = PinnedMemory(results);
  room_ = room;  // not before all is there
}

// Sizes of the step, places of its state, and room for it.
void CudaExecutor::lay_out(const Step& step) {
  shape_ = {};
  shape_.tokens = static_cast<int64_t>(step.tokens.size());
  shape_.rows = static_cast<int64_t>(step.rows.size());
  shape_.runs = static_cast<int64_t>(step.runs.size());
  shape_.given = program_.tokens > 0 ? step.given_rows : 0;
  shape_.context = context_bound(*std::max_element(step.visible.begin(), step.visible.end()));

  tile_tokens_.clear();
  tile_kind_.clear();
  for (const Plan::AttentionShape& a : plan_.attentions) {
    const int64_t size = attention_tile_tokens(a.heads, a.kv_heads, shape_.tokens);
    const auto it = std::find(tile_tokens_.begin(), tile_tokens_.end(), size);
    tile_kind_.push_back(static_cast<int>(it - tile_tokens_.begin()));
    if (it != tile_tokens_.end()) continue;
    tile_tokens_.push_back(size);
    int64_t tiles = 0;
    for (const Run& run : step.runs) tiles += (run.end - run.begin + size - 1) / size;
    shape_.tiles.push_back(tiles);
  }

  drawn_.clear();
  shape_.greedy = true;
  size_t most = 0;
  for (size_t i = 0; i < step.requests.size(); ++i) {
    const std::optional<DrawRequest>& request = step.requests[i];
    if (!request || request->adjustments.size() > kMaxAdjustments) continue;
    drawn_.push_back(i);
    shape_.greedy &= request->draw.sharpness == 0;
    most = std::max(most, request->adjustments.size());
  }
  shape_.draws = static_cast<int64_t>(drawn_.size());
  if (most > 0) shape_.adjustments = 64;  // steps share a graph
  while (shape_.adjustments < static_cast<int64_t>(most)) shape_.adjustments *= 2;

  size_t at = 0;
  const auto place = [&](int64_t count, size_t size = sizeof(int32_t)) {
    const size_t begin = at;
    at += (static_cast<size_t>(count) * size + 15) / 16 * 16;
    return begin;
  };
  upload_ = {};
  upload_.tokens = place(shape_.tokens);
  for (size_t& axis : upload_.positions) axis = place(shape_.tokens);
  upload_.entry = place(shape_.tokens);
  upload_.visible = place(shape_.tokens);
  upload_.run = place(shape_.tokens);
  upload_.rows = place(shape_.rows);
  upload_.pages = place(shape_.runs * (shape_.context / kPageTokens));
  for (const int64_t tiles : shape_.tiles) upload_.tiles.push_back(place(2 * tiles));
  upload_.draws = place(shape_.draws, sizeof(Drawing::Row));
  upload_.adjustments = place(shape_.draws * shape_.adjustments, sizeof(Adjustment));
  upload_.bad = place(shape_.tokens);
  upload_.drawn = place(shape_.draws);
  for (const Op& op : program_.ops)
    if (op.is<ops::Input>()) upload_.inputs.push_back(place(shape_.tokens * op.width));
  upload_.given = place(shape_.given * program_.ops[0].width);
  upload_.bytes = at;

  reserve(
      {shape_.tokens, shape_.rows, shape_.draws, upload_.bytes, plan_.partial_bytes(shape_.tokens, shape_.context)});

  state_ = {numbers(upload_.tokens),      {},
            numbers(upload_.entry),       numbers(upload_.visible),
            numbers(upload_.run),         numbers(upload_.pages),
            shape_.context / kPageTokens, reinterpret_cast<const float*>(scratch(upload_.given))};
  for (int axis = 0; axis < kAxes; ++axis) state_.positions[axis] = numbers(upload_.positions[axis]);
  const auto logits = static_cast<size_t>(rows_of(program_.ops.back().out) * program_.vocab) * sizeof(float);
  if (logits <= host_logits_.size()) {
    logits_ = reinterpret_cast<float*>(host_logits_.data());
  } else {
    if (logits > many_logits_.size()) {
      many_logits_.reset();
      many_logits_ = Memory(logits, "logits");
    }
    logits_ = many_logits_.as<float>();
  }
}

// The step's state as lay_out places it.
void CudaExecutor::fill(const Step& step, uint8_t* to) const {
  std::memset(to, 0, upload_.bytes);
  const auto put = [&](size_t offset, const auto& list) {
    std::copy(list.begin(), list.end(), reinterpret_cast<int32_t*>(to + offset));
  };
  put(upload_.tokens, step.tokens);
  for (int axis = 0; axis < kAxes; ++axis) put(upload_.positions[axis], step.positions[axis]);
  put(upload_.entry, step.entry);
  put(upload_.visible, step.visible);
  put(upload_.rows, step.rows);
  auto* run = reinterpret_cast<int32_t*>(to + upload_.run);
  auto* pages = reinterpret_cast<int32_t*>(to + upload_.pages);
  for (size_t r = 0; r < step.runs.size(); ++r) {
    const Run& tokens = step.runs[r];
    std::fill(run + tokens.begin, run + tokens.end, static_cast<int32_t>(r));
    const int64_t entries = *std::max_element(step.visible.begin() + tokens.begin, step.visible.begin() + tokens.end);
    std::copy_n(tokens.pages, (entries + kPageTokens - 1) / kPageTokens,
                pages + static_cast<int64_t>(r) * state_.page_stride);
  }
  for (size_t kind = 0; kind < tile_tokens_.size(); ++kind) {
    auto* tile = reinterpret_cast<Tile*>(to + upload_.tiles[kind]);
    for (const Run& tokens : step.runs)
      for (int64_t begin = tokens.begin; begin < tokens.end; begin += tile_tokens_[kind])
        *tile++ = {static_cast<int32_t>(begin), static_cast<int32_t>(std::min(begin + tile_tokens_[kind], tokens.end))};
  }
  for (size_t i = 0; i < drawn_.size(); ++i) {
    const DrawRequest& request = *step.requests[drawn_[i]];
    reinterpret_cast<Drawing::Row*>(to + upload_.draws)[i] = {request.draw, logits_row(step, drawn_[i]),
                                                              static_cast<int32_t>(request.adjustments.size())};
    std::copy(request.adjustments.begin(), request.adjustments.end(),
              reinterpret_cast<Adjustment*>(to + upload_.adjustments) + i * static_cast<size_t>(shape_.adjustments));
  }
  for (const Op& op : program_.ops) {
    const auto* input = op.as<ops::Input>();
    if (!input) continue;
    uint8_t* rows = to + upload_.inputs[plan_.inputs[op.out]];
    const size_t bytes = static_cast<size_t>(op.width) * sizeof(float);
    for (int64_t t = 0; t < shape_.tokens; ++t)
      std::memcpy(rows + static_cast<size_t>(t) * bytes, step.input + t * program_.input + input->first, bytes);
  }
  if (shape_.given > 0)
    std::memcpy(to + upload_.given, step.given,
                static_cast<size_t>(shape_.given * program_.ops[0].width) * sizeof(float));
}

StepResult CudaExecutor::run_step(const Step& step, const CancelFlag* cancel, const Watch* watch) {
  done_.store(0, std::memory_order_relaxed);
  lay_out(step);
  fill(step, host_upload_.data());
  if (cancel && cancel->set.load(std::memory_order_relaxed)) throw Cancelled("the step was cancelled");
  if (!watch && shape_.tokens <= kGraphTokens) {
    replay();
  } else {
    enqueue(cancel, watch);
  }
  check(cudaStreamSynchronize(*stream_), "a step");
  done_.store(static_cast<int>(program_.ops.size()), std::memory_order_relaxed);
  StepResult result;
  result.logits = logits_;
  const auto* bad = reinterpret_cast<const int32_t*>(host_results_.data());
  const auto* end = bad + shape_.tokens;
  const auto* found = std::find_if(bad, end, [](int32_t flag) { return flag != 0; });
  if (found != end) {
    result.bad_token = found - bad;
  } else if (!drawn_.empty()) {
    const auto* tokens = reinterpret_cast<const int32_t*>(host_results_.data() + (upload_.drawn - upload_.bad));
    result.tokens.assign(step.rows.size(), -1);
    for (size_t i = 0; i < drawn_.size(); ++i) result.tokens[drawn_[i]] = tokens[i];
    fetch_logits(step, result.tokens);
  }
  return result;
}

// Brings the logits of the rows for which no token was drawn.
void CudaExecutor::fetch_logits(const Step& step, const std::vector<int32_t>& tokens) {
  const float* from = value(program_.ops.back().out);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0) continue;
    const int64_t at = logits_row(step, i) * program_.vocab;
    check(cudaMemcpyAsync(logits_ + at, from + at, static_cast<size_t>(program_.vocab) * sizeof(float),
                          cudaMemcpyDeviceToHost, *stream_),
          "logits");
  }
  check(cudaStreamSynchronize(*stream_), "logits");
}

void CudaExecutor::replay() {
  if (graphs_.size() >= kGraphs && !graphs_.count(shape_)) graphs_.clear();
  const auto [it, first] = graphs_.try_emplace(shape_);
  if (first) {
    enqueue(nullptr, nullptr);
    return;
  }
  if (!it->second.exec) capture(it->second, {});
  check(cudaGraphLaunch(it->second.exec, *stream_), "a captured step");
}

// Should a driver not take kernels that are launched ahead into graphs, then in turn.
void CudaExecutor::capture(Graph& graph, const AfterOp& after) {
  try {
    capture_step(graph, after);
  } catch (const std::runtime_error&) {
    settle();
    if (!lost_.empty() || !launches_ahead()) throw;
    const Ahead allowed(false);
    capture_step(graph, after);
  }
}

void CudaExecutor::capture_step(Graph& graph, const AfterOp& after) {
  check(cudaStreamBeginCapture(*stream_, cudaStreamCaptureModeThreadLocal), "capturing a step");
  enqueue(nullptr, nullptr, after);
  cudaGraph_t captured = nullptr;
  check(cudaStreamEndCapture(*stream_, &captured), "capturing a step");
  const cudaError_t error = cudaGraphInstantiate(&graph.exec, captured, 0);
  cudaGraphDestroy(captured);
  check(error, "capturing a step");
}

// Everything a step does on the GPU: its state in, its ops, its logits and flags out.
void CudaExecutor::enqueue(const CancelFlag* cancel, const Watch* watch, const AfterOp& after) {
  check(cudaMemcpyAsync(scratch(0), host_upload_.data(), upload_.bytes, cudaMemcpyHostToDevice, *stream_),
        "a step's state");
  for (size_t i = 0; i < ropes_.size(); ++i)
    make_turns(ropes_[i], state_, shape_.tokens, turns(static_cast<int>(i)), *stream_);
  // In a long step the CPU runs two layers ahead at most, so that a cancel takes effect and progress is true.
  const bool paced = shape_.tokens > kGraphTokens;
  std::optional<Event> layers[2];
  if (paced)
    for (auto& e : layers) e.emplace();
  int layer = 0;
  for (const Op& op : program_.ops) {
    if (rows_of(op.out) == 0) continue;
    launch(op, watch != nullptr);
    if (after) after(op);
    if (watch) {
      const int64_t rows = rows_of(op.out);
      std::vector<float> host(static_cast<size_t>(rows * op.width));
      check(cudaMemcpyAsync(host.data(), value(op.out), host.size() * sizeof(float), cudaMemcpyDeviceToHost, *stream_),
            "a value");
      check(cudaStreamSynchronize(*stream_), op.text.c_str());
      watch->value(op.out, host.data(), rows, op.width);
    }
    if (cancel && cancel->set.load(std::memory_order_relaxed)) {
      check(cudaStreamSynchronize(*stream_), "a cancelled step");
      throw Cancelled("the step was cancelled");
    }
    if (paced && op.is<ops::Attention>()) {
      layers[layer % 2]->record(*stream_);
      if (layer++ > 0) layers[layer % 2]->wait();
      done_.store(op.out, std::memory_order_relaxed);
    }
  }
  const int last = program_.ops.back().out;
  auto* bad = reinterpret_cast<int32_t*>(scratch(upload_.bad));
  if (const int64_t rows = rows_of(last); rows > 0) {
    check_finite(value(last), rows, program_.vocab, program_.selects() ? numbers(upload_.rows) : nullptr, bad,
                 *stream_);
    if (drawn_.empty()) {
      check(cudaMemcpyAsync(logits_, value(last), static_cast<size_t>(rows * program_.vocab) * sizeof(float),
                            cudaMemcpyDeviceToHost, *stream_),
            "logits");
    } else {
      draw();
    }
  }
  const size_t results = upload_.drawn - upload_.bad + drawn_.size() * sizeof(int32_t);
  check(cudaMemcpyAsync(host_results_.data(), bad, results, cudaMemcpyDeviceToHost, *stream_), "a step's results");
}

// alone: not together with the op before or after it.
void CudaExecutor::launch(const Op& op, bool alone) {
  const auto with_next = [&](int id) { return alone ? Pair::kNone : plan_.fusion.with_next[id]; };
  if (op.out > 0 && with_next(op.out - 1) != Pair::kNone) return;
  const Op* next = with_next(op.out) != Pair::kNone ? &program_.ops[op.out + 1] : nullptr;
  std::visit([&](const auto& kind) { make(op, kind, next); }, op.kind);
}

void CudaExecutor::make(const Op& op, const ops::Input&, const Op*) {
  if (blocks(op.out)) quantize(value(op.out), rows_of(op.out), op.width, blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Embed& kind, const Op*) {
  std::vector<Matrix> positions;
  for (const int index : kind.positions) positions.push_back(matrix(index));
  embed(matrix(kind.table), positions.empty() ? nullptr : &positions[0], positions.size() < 2 ? nullptr : &positions[1],
        state_, rows_of(op.out), value(op.out), blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::RmsNorm& kind, const Op* next) {
  const auto norm_of = [&](const Op& o, const ops::RmsNorm& k) {
    return RmsNorm{vector(k.w), k.add >= 0 ? value(k.add) : nullptr, k.eps, value(o.out), blocks(o.out)};
  };
  const RmsNorm second = next ? norm_of(*next, *next->as<ops::RmsNorm>()) : RmsNorm{};
  rms_norm(value(kind.x), norm_of(op, kind), next ? &second : nullptr, rows_of(op.out), op.width, *stream_);
}

void CudaExecutor::make(const Op& op, const ops::LayerNorm& kind, const Op*) {
  layer_norm(value(kind.x), vector(kind.w), vector(kind.bias), value(op.out), rows_of(op.out), op.width, kind.eps,
             blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Swiglu& kind, const Op*) {
  swiglu(value(kind.x), value(op.out), rows_of(op.out), op.width, blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Gelu& kind, const Op*) {
  gelu(value(kind.x), value(op.out), rows_of(op.out), op.width, blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::GeluErf& kind, const Op*) {
  gelu_erf(value(kind.x), value(op.out), rows_of(op.out), op.width, blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Select& kind, const Op*) {
  select(value(kind.x), numbers(upload_.rows), rows_of(op.out), op.width, value(op.out), blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Linear& kind, const Op* next) {
  Linear linear_op{};
  linear_op.count = static_cast<int>(kind.w.size());
  for (size_t i = 0; i < kind.w.size(); ++i)
    linear_op.parts[i] = {matrix(kind.w[i]), kind.bias.empty() ? nullptr : vector(kind.bias[i])};
  linear_op.tokens = rows_of(op.out);
  linear_op.x = value(kind.x);
  linear_op.blocks = blocks(kind.x);
  linear_op.add = kind.add >= 0 ? value(kind.add) : nullptr;
  linear_op.alpha = kind.alpha;
  linear_op.y = value(op.out);
  if (next) {
    linear_op.gated = value(next->out);
    linear_op.gated_blocks = blocks(next->out);
  }
  linear(linear_op, *stream_);
  if (blocks(op.out)) quantize(value(op.out), rows_of(op.out), op.width, blocks(op.out), *stream_);
}

void CudaExecutor::make(const Op& op, const ops::Attention& kind, const Op*) {
  const KvCache pages{kv_type_, kind.kv_heads, kind.head_dim, cache(kind.cache)};
  AppendKv append{};
  append.qkv = value(kind.qkv);
  append.tokens = shape_.tokens;
  append.heads = kind.heads;
  append.q_norm = vector(kind.q_norm);
  append.k_norm = vector(kind.k_norm);
  append.eps = kind.eps;
  append.rope = kind.rope >= 0 ? &ropes_[kind.rope] : nullptr;
  append.turns = kind.rope >= 0 ? turns(kind.rope) : nullptr;
  append.cache = pages;
  append.step = state_;
  append.bad = reinterpret_cast<int32_t*>(scratch(upload_.bad));
  append_kv(append, *stream_);

  const int tile = tile_kind_[kind.cache];
  Attention attention_op{};
  attention_op.qkv = value(kind.qkv);
  attention_op.tokens = shape_.tokens;
  attention_op.heads = kind.heads;
  attention_op.scale = kind.scale;
  attention_op.cache = pages;
  attention_op.step = state_;
  attention_op.tiles = reinterpret_cast<const Tile*>(scratch(upload_.tiles[tile]));
  attention_op.tile_count = shape_.tiles[tile];
  attention_op.max_context = shape_.context;
  attention_op.partials = reinterpret_cast<float*>(scratch(scratch_.partials));
  attention_op.y = value(op.out);
  attention_op.blocks = blocks(op.out);
  attention(attention_op, *stream_);
}

void CudaExecutor::draw() {
  Drawing op{};
  op.logits = value(program_.ops.back().out);
  op.vocab = program_.vocab;
  op.rows = reinterpret_cast<const Drawing::Row*>(scratch(upload_.draws));
  op.adjustments = reinterpret_cast<const Adjustment*>(scratch(upload_.adjustments));
  op.count = shape_.draws;
  op.adjustment_stride = shape_.adjustments;
  op.greedy = shape_.greedy;
  op.scratch = scratch(scratch_.draws);
  op.tokens = reinterpret_cast<int32_t*>(scratch(upload_.drawn));
  cuda::draw(op, *stream_);
}

StepTimes CudaExecutor::measure(int64_t context) {
  std::vector<int32_t> pages(static_cast<size_t>((context + kPageTokens - 1) / kPageTokens));
  std::iota(pages.begin(), pages.end(), 0);
  Step step;
  step.tokens = step.rows = {0};
  step.requests.emplace_back(DrawRequest{});  // the token of the largest logit
  for (int axis = 0; axis < kAxes; ++axis)
    step.positions[axis] = {static_cast<int32_t>(std::min(context, program_.axis_limit[axis]) - 1)};
  step.entry = {context - 1};
  step.visible = {context};
  step.runs = {{0, 1, pages.data()}};
  StepTimes times{};
  guarded([&] {
    lay_out(step);
    fill(step, host_upload_.data());
    enqueue(nullptr, nullptr);  // loads the kernels
    check(cudaStreamSynchronize(*stream_), "a step");
    // Launches a graph several times; `look` sees each.
    const auto launch_captured = [&](bool ahead, const AfterOp& after, const auto& look) {
      Graph graph;
      {
        const Ahead allowed(ahead);
        capture(graph, after);
      }
      for (int i = 0; i < kMeasurements; ++i) {
        Event begin(cudaEventDefault), end(cudaEventDefault);
        begin.record(*stream_);
        check(cudaGraphLaunch(graph.exec, *stream_), "a captured step");
        end.record(*stream_);
        check(cudaStreamSynchronize(*stream_), "a captured step");
        look(i, end.microseconds_since(begin));
      }
    };
    const auto least = [](float& best, int i, float time) { best = i ? std::min(best, time) : time; };
    launch_captured(true, {}, [&](int i, float time) { least(times.ahead, i, time); });
    launch_captured(false, {}, [&](int i, float time) { least(times.in_turn, i, time); });
    std::vector<std::unique_ptr<Event>> clocks;
    const auto record = [&](const Op&) {
      clocks.push_back(std::make_unique<Event>(cudaEventDefault));
      clocks.back()->record_in_graph(*stream_);
    };
    for (const Op& op : program_.ops) times.ops.emplace_back(op.text, 0.0f);
    launch_captured(false, record, [&](int i, float) {
      for (size_t op = 1; op < clocks.size(); ++op)
        least(times.ops[op].second, i, clocks[op]->microseconds_since(*clocks[op - 1]));
    });
  });
  return times;
}

// The part of a program that the GPU gets: all of it, or the second part of a split.
bool on_both(const Program& program, int gpu_layers) { return gpu_layers >= 0 && gpu_layers < program.layers(); }

}  // namespace

Need memory_needed(const Program& program, int64_t pages, KvType kv_type, int gpu_layers) {
  Need need;
  need.layers = program.layers();
  need.gpu_layers = on_both(program, gpu_layers) ? gpu_layers : program.layers();
  if (need.gpu_layers == 0 && program.layers() > 0) return need;
  const bool split = need.gpu_layers < program.layers();
  const Plan plan(split ? program.split(need.gpu_layers).second : program, pages, kv_type);
  need.weights = plan.weight_bytes;
  need.kv = plan.kv_bytes;
  need.page = std::accumulate(plan.cache_page_bytes.begin(), plan.cache_page_bytes.end(), size_t{0});
  need.scratch = plan.scratch(plan.largest()).bytes;
  need.reserve = kReserve;
  return need;
}

StepTimes measure_step(Program program, const ExecutorOptions& options, int64_t context) {
  use_device(options.device);
  CudaExecutor executor(std::move(program), options, {});
  return executor.measure(context);
}

int layers_that_fit(const Program& program, int64_t pages, KvType kv_type, size_t free) {
  int layers = program.layers();
  while (layers > 0 && memory_needed(program, pages, kv_type, layers).total() > free) --layers;
  return layers;
}

std::unique_ptr<Executor> make_executor(Program program, const ExecutorOptions& options, const LoadProgress& progress) {
  const bool split = on_both(program, options.gpu_layers);
  ExecutorOptions cpu = options;
  cpu.device = -1;
  if (options.device < 0 || (split && options.gpu_layers == 0))
    return make_cpu_executor(std::move(program), cpu, progress);
  if (options.packed) throw std::invalid_argument("packed: weights for the CPU alone, and layers on a GPU");

  const DeviceInfo device = use_device(options.device);
  const Need need = memory_needed(program, options.pages, options.kv_type, options.gpu_layers);
  if (const size_t free = free_memory(); need.total() > free) {
    const int fit = layers_that_fit(program, options.pages, options.kv_type, free);
    throw OutOfMemory(
        "cuda:" + std::to_string(device.index) + " " + device.name + ": " + std::to_string(need.gpu_layers) + " of " +
        std::to_string(need.layers) + " layers need " + gigabytes(need.total()) + " of GPU memory (weights " +
        gigabytes(need.weights) + ", KV cache " + gigabytes(need.kv) + " for " +
        std::to_string(options.pages * kPageTokens) + " tokens, scratch " + gigabytes(need.scratch) + ", CUDA itself " +
        gigabytes(need.reserve) + "), " + gigabytes(free) + " of " + gigabytes(device.total) + " are free; " +
        (fit > 0 ? "gpu_layers=" + std::to_string(fit) + " fits, the rest then runs on the CPU; a smaller context"
                 : std::string("no layer fits; a smaller context")) +
        (options.kv_type == KvType::kQ8 ? "" : " or kv_type='q8'") + " takes less");
  }
  if (!split) return std::make_unique<CudaExecutor>(std::move(program), options, progress);

  auto parts = program.split(options.gpu_layers);
  const uint64_t on_gpu = parts.second.file_bytes(), total = on_gpu + parts.first.file_bytes();
  const size_t first_ops = parts.first.ops.size(), second_ops = parts.second.ops.size();
  LoadProgress first, second;
  if (progress) {
    second = [&](uint64_t done, uint64_t) { return progress(done, total); };
    first = [&](uint64_t done, uint64_t) { return progress(on_gpu + done, total); };
  }
  auto last_layers = std::make_unique<CudaExecutor>(std::move(parts.second), options, second);
  auto first_layers = make_cpu_executor(std::move(parts.first), cpu, first);
  return make_hybrid_executor(std::move(first_layers), std::move(last_layers), first_ops, second_ops);
}

}  // namespace glmlite::cuda
