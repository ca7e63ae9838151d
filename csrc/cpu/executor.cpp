// Runs a program on the CPU: walks its ops with a team of threads.
#include "../executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "../errors.h"
#include "attend.h"
#include "cores.h"
#include "kv_pages.h"
#include "mixture.h"
#include "pace.h"
#include "packed_weights.h"
#include "products.h"
#include "step_buffers.h"
#include "strips.h"
#include "team.h"

namespace glmlite {

namespace {

constexpr std::chrono::milliseconds kTurn{10};  // a step goes on with so many threads for at least this

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;  // integers, so that the compiler may vectorise the loop
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

// Each half of what is gated is whole panels, of each matrix.
bool takes(const Program& program, Pair pair, const Op& op, const Op& next) {
  if (pair != Pair::kGated || op.as<ops::Linear>()->add >= 0 || next.width % kLanes) return false;
  const auto& w = op.as<ops::Linear>()->w;
  return std::all_of(w.begin(), w.end(), [&](int index) { return program.weights[index].n % kLanes == 0; });
}

// Counts what it has done itself.
bool attends(const Op& op) { return op.is<ops::Attention>() || op.is<ops::LatentAttention>(); }

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(Program program, const ExecutorOptions& options, const LoadProgress& progress)
      : program_(std::move(program)),
        kernels_(cpu_kernels(options.isa.c_str())),
        team_(options.threads > 0 ? options.threads : default_threads(), options.priority),
        threads_(team_.threads()),
        fusion_(program_, [&](Pair pair, const Op& op, const Op& next) { return takes(program_, pair, op, next); }),
        strips_(program_),
        weights_(program_),
        pages_(program_.caches, options.kv_type, options.pages, kernels_),
        buffers_(program_, fusion_, strips_, kernels_, team_),
        products_(program_, kernels_, weights_, buffers_, team_),
        attend_(program_, kernels_, weights_, buffers_, pages_, products_, team_),
        mixture_(program_, kernels_, weights_, buffers_, products_, team_) {
    const bool streams = options.packed && options.weight_room >= 0;
    const size_t room = std::min(static_cast<size_t>(options.weight_room), weights_.bytes());
    const size_t need = (streams ? room : options.packed ? 0 : weights_.bytes()) + pages_.bytes();
    if (need > available_memory()) throw OutOfMemory("weights and KV cache", need);
    pages_.allocate();
    if (streams) {
      weights_.stream(program_, *options.packed, room, team_, progress);
    } else if (options.packed) {
      weights_.map(program_, *options.packed);
      if (const size_t all = weights_.bytes(); progress && !progress(all, all))
        throw Cancelled("the load was cancelled");
    } else {
      weights_.load(program_, team_, progress);
    }
    // A team that waits for a disk cannot tell that from waiting for a core.
    adaptive_ = options.adaptive && !streams;
    begin_pace();
    prefix_ = program_.prefix_values();
    for (Weight& w : program_.weights) w.tensor = nullptr;  // the file may go
  }

  StepResult run(const Step& step, const CancelFlag* cancel, const Watch* watch) override;
  void share(int64_t count, const std::function<void(int64_t)>& fn) override;
  void copy_page(int32_t from, int32_t to) override { pages_.copy(from, to); }
  void write_prefix(const std::vector<int32_t>& pages) override;
  size_t weight_bytes() const override { return weights_.held(); }
  size_t kv_bytes() const override { return pages_.bytes(); }
  size_t scratch_bytes() const override { return buffers_.bytes() + attend_.bytes() + mixture_.bytes(); }
  void release() override;
  int threads() const override { return threads_.load(std::memory_order_relaxed); }
  void set_threads(int threads) override { threads_.store(threads, std::memory_order_relaxed); }
  int threads_now() const override { return threads_now_.load(std::memory_order_relaxed); }
  const char* isa() const override { return kernels_.name; }
  double progress() const override {
    const auto done = static_cast<double>(done_.load(std::memory_order_relaxed));
    return std::min(1.0, done / static_cast<double>(all_.load(std::memory_order_relaxed)));
  }

 private:
  void begin_pace();
  void reserve(const Step& step, int64_t part_rows);
  int64_t work(const Op& op) const;
  // Runs a part's ops from `first` on, and returns where it left off: for a cancel, or to have other threads.
  size_t run_from(size_t first, const Part& part, const Watch* watch);

  // Each is run by all threads of the team; barriers are where they need one, and one after each op. They make the rows
  // of the op's value, but do not round them where parts of a row are written by several threads.
  void run_op(const Op& op, int thread);
  void make(const Op& op, const ops::Input& kind, int thread);
  void make(const Op& op, const ops::Embed& kind, int thread);
  void make(const Op& op, const ops::RmsNorm& kind, int thread);
  void make(const Op& op, const ops::LayerNorm& kind, int thread);
  void make(const Op& op, const ops::Linear& kind, int thread);
  void make(const Op& op, const ops::HeadLinear& kind, int thread);
  void make(const Op& op, const ops::Attention& kind, int thread);
  void make(const Op& op, const ops::LatentAttention& kind, int thread);
  void make(const Op& op, const ops::Swiglu& kind, int thread);
  void make(const Op& op, const ops::Gelu& kind, int thread);
  void make(const Op& op, const ops::GeluErf& kind, int thread);
  void make(const Op& op, const ops::Select& kind, int thread);
  void make(const Op& op, const ops::Concat& kind, int thread);
  void make(const Op& op, const ops::Route& kind, int thread);
  void make(const Op& op, const ops::Moe& kind, int thread);
  void round_whole_rows(const Op& op, int thread);
  void round_rows(int id, int thread);

  bool done_by_linear(const Op& op) const { return op.out > 0 && buffers_.with_next(op.out - 1) == Pair::kGated; }
  // Of a swiglu that was done with its linear only the rounding is left, and of a single row not even that.
  bool nothing_left(const Op& op) const { return done_by_linear(op) && buffers_.rows(op.out) == 1; }

  Program program_;
  const CpuKernels& kernels_;
  Team team_;
  std::atomic<int> threads_;         // of the next step, at most
  std::atomic<int> threads_now_{1};  // of what runs
  bool adaptive_ = false;
  std::optional<Pace> pace_;
  const Fusion fusion_;
  const Strips strips_;
  PackedWeights weights_;
  KvPages pages_;
  StepBuffers buffers_;
  Products products_;
  Attend attend_;
  Mixture mixture_;
  std::vector<float> prefix_;  // keys and values of each attention op, (length, kv_heads * head_dim) each
  int64_t capacity_ = 0;       // tokens of a step that there is room for, and rows of a part
  int64_t part_capacity_ = 0;

  // The step in progress.
  std::vector<char> bad_;  // by token: a key, value or logit is not finite
  const CancelFlag* cancel_ = nullptr;
  std::atomic<bool> cancelled_{false};     // heard by a thread, maybe within an op
  std::atomic<int64_t> done_{0}, all_{1};  // multiplications
};

void CpuExecutor::write_prefix(const std::vector<int32_t>& pages) {
  float* from = prefix_.data();
  for (size_t c = 0; c < program_.caches.size(); ++c) {
    const int64_t columns = int64_t{program_.caches[c].heads} * program_.caches[c].key_dim;
    float *keys = from, *values = from + program_.prefix * columns;
    from = values + program_.prefix * columns;
    for (int64_t e = 0; e < program_.prefix; ++e) {
      if (!pages_.store(static_cast<int>(c), pages[e / kPageTokens], e % kPageTokens, keys + e * columns,
                        values + e * columns))
        throw FormatError("the prefix of layer " + std::to_string(c) + " has a value that is not finite");
    }
  }
  prefix_ = {};
}

void CpuExecutor::release() {
  capacity_ = 0;
  buffers_.release();
  attend_.release();
  mixture_.release();
  if (!program_.keeps) pages_.release();
}

// Multiplications of an op in the step that is planned; what has none counts as one a value.
int64_t CpuExecutor::work(const Op& op) const {
  const int64_t rows = buffers_.rows(op.out);
  const auto size = [&](int weight) {
    const Weight& w = program_.weights[weight];
    return w.count * w.n * w.k;
  };
  int64_t values = op.width;
  if (const auto* a = op.as<ops::Attention>()) return attend_.work(a->cache);
  if (const auto* a = op.as<ops::LatentAttention>()) return attend_.work(a->cache);
  if (const auto* linear = op.as<ops::Linear>())
    values =
        std::accumulate(linear->w.begin(), linear->w.end(), int64_t{0}, [&](int64_t n, int w) { return n + size(w); });
  if (const auto* linear = op.as<ops::HeadLinear>()) values = size(linear->w);
  if (const auto* route = op.as<ops::Route>()) values = size(route->gate);
  if (const auto* moe = op.as<ops::Moe>()) values = 3 * moe->used * moe->inner * op.width;
  return rows * values;
}

void CpuExecutor::begin_pace() {
  pace_.reset();
  if (adaptive_ && team_.threads() > 1 && core_ticks() > 0) pace_.emplace(team_.threads());
  team_.measure(pace_.has_value());
}

// Makes room for a step: all that may fail for want of memory or threads fails here, before anything is computed.
void CpuExecutor::reserve(const Step& step, int64_t part_rows) {
  if (const int threads = threads_.load(std::memory_order_relaxed); threads != team_.threads()) {
    capacity_ = 0;
    try {
      team_.resize(threads);
    } catch (const std::system_error& error) {
      int asked = threads;
      threads_.compare_exchange_strong(asked, team_.threads());
      throw std::runtime_error("threads: " + std::to_string(threads) + " are more than the system gives (" +
                               error.what() + "); there are still " + std::to_string(team_.threads()));
    }
    begin_pace();
  }
  if (pace_) team_.take_part(pace_->threads());
  if (!pages_.allocated()) pages_.allocate();
  const auto tokens = static_cast<int64_t>(step.tokens.size());
  if (tokens > capacity_ || part_rows > part_capacity_) {
    const auto sixteens = [](int64_t rows) { return (rows + 15) / 16 * 16; };
    const int64_t capacity = sixteens(std::max(tokens, capacity_)), part_capacity = sixteens(part_rows);
    capacity_ = part_capacity_ = 0;
    size_t scratch = std::max(mixture_.scratch_bytes(capacity), attend_.scratch_bytes());
    for (const Op& op : program_.ops)
      if (op.is<ops::Embed>()) scratch = std::max(scratch, static_cast<size_t>(op.width) * sizeof(float));
    buffers_.resize(capacity, part_capacity, scratch);
    attend_.resize(capacity);
    mixture_.resize(capacity);
    products_.resize();
    capacity_ = capacity;  // not before all is there
    part_capacity_ = part_capacity;
  }
  attend_.plan(step);
}

StepResult CpuExecutor::run(const Step& step, const CancelFlag* cancel, const Watch* watch) {
  // Who watches sees whole values.
  const auto tokens = static_cast<int64_t>(step.tokens.size());
  const int64_t part_rows = watch ? tokens : strips_.rows(tokens);
  reserve(step, part_rows);
  buffers_.begin(step, watch == nullptr);
  bad_.assign(step.tokens.size(), 0);
  cancel_ = cancel;
  cancelled_.store(false, std::memory_order_relaxed);
  int64_t all = 0;
  for (const Op& op : program_.ops) all += nothing_left(op) ? 0 : work(op);
  done_.store(0, std::memory_order_relaxed);
  all_.store(std::max<int64_t>(1, all), std::memory_order_relaxed);
  for (const Part& part : strips_.parts(tokens, part_rows)) {
    buffers_.enter(part);
    for (size_t next = part.stretch->first; next < part.stretch->last && !cancelled_.load(std::memory_order_relaxed);) {
      if (pace_) team_.take_part(pace_->threads());
      threads_now_.store(team_.size(), std::memory_order_relaxed);
      const int64_t ticks = pace_ ? clock_ticks() : 0;
      const auto begin = std::chrono::steady_clock::now();
      next = run_from(next, part, watch);
      if (!pace_) continue;
      const auto end = std::chrono::steady_clock::now();
      const double took = std::chrono::duration<double>(end - begin).count();
      const auto worked = static_cast<double>(team_.worked()) / static_cast<double>(clock_ticks() - ticks + 1);
      pace_->ran(std::chrono::duration<double>(end.time_since_epoch()).count(), took, took * worked);
    }
  }
  buffers_.end();
  weights_.rethrow();
  if (cancelled_.load(std::memory_order_relaxed)) throw Cancelled("the step was cancelled");
  const auto bad = std::find(bad_.begin(), bad_.end(), 1);
  return {buffers_.value(program_.ops.back().out), {}, bad == bad_.end() ? -1 : bad - bad_.begin()};
}

void CpuExecutor::share(int64_t count, const std::function<void(int64_t)>& fn) {
  if (count < 2) return Executor::share(count, fn);
  std::mutex mutex;
  std::exception_ptr error;
  team_.run([&](int) {
    int64_t i;
    while (team_.take(count, &i)) {
      try {
        fn(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

size_t CpuExecutor::run_from(size_t first, const Part& part, const Watch* watch) {
  const Stretch& stretch = *part.stretch;
  const int last = program_.ops.back().out;
  const auto begin = std::chrono::steady_clock::now();
  // Whether it is time for another number of threads. Where the machine is quiet, not even the clock is read.
  const auto turns = [&] {
    return pace_ && (team_.waited() || team_.size() < team_.threads()) &&
           std::chrono::steady_clock::now() - begin > kTurn;
  };
  // The op after which all threads leave. Thread 0 sets it before a barrier; a slower thread compares with its own op,
  // so that it does not matter if thread 0 is already one op further.
  std::atomic<int> leave_after{-1};
  team_.run([&](int thread) {
    if (first == 0 && part.begins_step()) {
      attend_.make_turns(thread);
      products_.wait_after(-1, thread);
    }
    if (first == stretch.first && !stretch.rounded.empty()) {
      for (const int id : stretch.rounded) round_rows(id, thread);
      team_.barrier();
    }
    for (size_t i = first; i < stretch.last; ++i) {
      const Op& op = program_.ops[i];
      if (nothing_left(op)) continue;
      if (buffers_.rows(op.out) > 0) run_op(op, thread);
      if (thread == 0) {
        if ((cancel_ && cancel_->is_set()) || weights_.failed()) cancelled_.store(true, std::memory_order_relaxed);
        if (op.out != last && turns()) leave_after.store(op.out, std::memory_order_relaxed);
        if (!attends(op)) done_.fetch_add(work(op), std::memory_order_relaxed);
      }
      if (cancelled_.load(std::memory_order_relaxed)) leave_after.store(op.out, std::memory_order_relaxed);
      products_.wait_after(op.out, thread);
      if (watch) {
        if (thread == 0) {
          if (const auto* moe = op.as<ops::Moe>(); moe && watch->expert) mixture_.tell(op, *moe, watch->expert);
          watch->value(op.out, buffers_.value(op.out), buffers_.rows(op.out), op.width);
        }
        team_.barrier();
      }
      if (leave_after.load(std::memory_order_relaxed) == op.out) return;
    }
    if (stretch.last < program_.ops.size()) return;
    buffers_.each_row(thread, buffers_.rows(last), [&](int64_t r) {
      if (!all_finite(buffers_.value(last) + r * program_.vocab, program_.vocab))
        bad_[program_.selects() ? buffers_.step().rows[r] : part.begin + r] = 1;
    });
  });
  const int left = leave_after.load();
  return left < 0 ? stretch.last : static_cast<size_t>(left) + 1;
}

void CpuExecutor::run_op(const Op& op, int thread) {
  std::visit([&](const auto& kind) { make(op, kind, thread); }, op.kind);
}

// Parts of a row are written by several threads: it is whole only after a barrier.
void CpuExecutor::round_whole_rows(const Op& op, int thread) {
  if (attends(op) && buffers_.rows(op.out) > part_capacity_) return;  // the parts that read it do that
  const int64_t rows = buffers_.rows(op.out);
  if (!buffers_.quantizes(op.out) || rows == 1) return;
  products_.wait_after(op.out, thread);
  round_rows(op.out, thread);
}

void CpuExecutor::round_rows(int id, int thread) {
  const int64_t rows = buffers_.rows(id);
  buffers_.quantize_rows(id, buffers_.first_row(thread, rows), buffers_.first_row(thread + 1, rows));
}

void CpuExecutor::make(const Op& op, const ops::Input& kind, int thread) {
  float* y = buffers_.value(op.out);
  const float* from = buffers_.step().input + buffers_.first() * program_.input + kind.first;
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    std::memcpy(y + t * op.width, from + t * program_.input, static_cast<size_t>(op.width) * sizeof(float));
  });
}

void CpuExecutor::make(const Op& op, const ops::Embed& kind, int thread) {
  const Packed& table = weights_.matrix(kind.table);
  const Step& step = buffers_.step();
  auto* added = reinterpret_cast<float*>(buffers_.scratch(thread));
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    float* row = buffers_.value(op.out) + t * op.width;
    if (const int32_t id = step.tokens[buffers_.first() + t]; id < 0) {
      std::memcpy(row, step.given + (-1 - id) * op.width, static_cast<size_t>(op.width) * sizeof(float));
    } else {
      kernels_.unpack_row[static_cast<int>(table.format)](table.panels, table.k, id, row);
    }
    for (size_t a = 0; a < kind.positions.size(); ++a) {
      const Packed& p = weights_.matrix(kind.positions[a]);
      kernels_.unpack_row[static_cast<int>(p.format)](p.panels, p.k, step.positions[a][buffers_.first() + t], added);
      kernels_.add(row, added, op.width);
    }
  });
}

void CpuExecutor::make(const Op& op, const ops::RmsNorm& kind, int thread) {
  const int64_t width = op.width;
  const float *x = buffers_.value(kind.x), *add = kind.add >= 0 ? buffers_.value(kind.add) : nullptr;
  float* y = buffers_.value(op.out);
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    kernels_.rms_norm(x + t * width, weights_.vector(kind.w), add ? add + t * width : nullptr, y + t * width, width,
                      kind.eps);
  });
}

void CpuExecutor::make(const Op& op, const ops::LayerNorm& kind, int thread) {
  const int64_t width = op.width;
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    kernels_.layer_norm(buffers_.value(kind.x) + t * width, weights_.vector(kind.w), weights_.vector(kind.bias),
                        buffers_.value(op.out) + t * width, width, kind.eps);
  });
}

void CpuExecutor::make(const Op& op, const ops::Linear& kind, int thread) {
  if (buffers_.with_next(op.out) == Pair::kGated) {
    products_.linear_swiglu(op, kind, program_.ops[op.out + 1], thread);
  } else {
    products_.linear(op, kind, thread);
  }
  round_whole_rows(op, thread);
}

void CpuExecutor::make(const Op& op, const ops::HeadLinear& kind, int thread) {
  products_.head_linear(op, kind, thread);
  round_whole_rows(op, thread);
}

void CpuExecutor::make(const Op& op, const ops::Attention& kind, int thread) {
  if (!attend_.run(op, kind, thread, {&bad_, &done_, cancel_})) cancelled_.store(true, std::memory_order_relaxed);
  round_whole_rows(op, thread);
}

void CpuExecutor::make(const Op& op, const ops::LatentAttention& kind, int thread) {
  if (!attend_.run(op, kind, thread, {&bad_, &done_, cancel_})) cancelled_.store(true, std::memory_order_relaxed);
  round_whole_rows(op, thread);
}

void CpuExecutor::make(const Op& op, const ops::Swiglu& kind, int thread) {
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    if (done_by_linear(op)) return;
    kernels_.swiglu(buffers_.value(kind.x) + t * 2 * op.width, buffers_.value(op.out) + t * op.width, op.width);
  });
}

void CpuExecutor::make(const Op& op, const ops::Gelu& kind, int thread) {
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    kernels_.gelu(buffers_.value(kind.x) + t * op.width, buffers_.value(op.out) + t * op.width, op.width);
  });
}

void CpuExecutor::make(const Op& op, const ops::GeluErf& kind, int thread) {
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    kernels_.gelu_erf(buffers_.value(kind.x) + t * op.width, buffers_.value(op.out) + t * op.width, op.width);
  });
}

void CpuExecutor::make(const Op& op, const ops::Select& kind, int thread) {
  buffers_.make_rows(op.out, thread, [&](int64_t r) {
    std::memcpy(buffers_.value(op.out) + r * op.width, buffers_.value(kind.x) + buffers_.step().rows[r] * op.width,
                static_cast<size_t>(op.width) * sizeof(float));
  });
}

void CpuExecutor::make(const Op& op, const ops::Concat& kind, int thread) {
  const int64_t left = program_.values[kind.x].width, right = program_.values[kind.y].width;
  buffers_.make_rows(op.out, thread, [&](int64_t t) {
    float* y = buffers_.value(op.out) + t * op.width;
    std::memcpy(y, buffers_.value(kind.x) + t * left, static_cast<size_t>(left) * sizeof(float));
    std::memcpy(y + left, buffers_.value(kind.y) + t * right, static_cast<size_t>(right) * sizeof(float));
  });
}

void CpuExecutor::make(const Op& op, const ops::Route& kind, int thread) { mixture_.route(op, kind, thread); }

void CpuExecutor::make(const Op& op, const ops::Moe& kind, int thread) {
  mixture_.run(op, kind, thread);
  round_whole_rows(op, thread);
}

}  // namespace

PackedBytes cpu_weight_bytes(const Program& program) {
  const PackedWeights weights(program);
  return {weights.bytes(), weights.expert_bytes()};
}

PackedFile::Identity cpu_packed_identity(const Program& program, const std::array<uint8_t, 32>& key) {
  return PackedWeights(program).identity(program, key);
}

void cpu_pack(const Program& program, const Output& output, uint64_t begin, int threads, Priority priority,
              const LoadProgress& progress) {
  Team team(threads > 0 ? threads : default_threads(), priority);
  PackedWeights(program).write(program, output, begin, team, progress);
}

size_t cpu_page_bytes(const Program& program, KvType type) { return KvPages::page_bytes(program.caches, type); }

std::unique_ptr<Executor> make_cpu_executor(Program program, const ExecutorOptions& options,
                                            const LoadProgress& progress) {
  if (options.device >= 0) throw std::invalid_argument("device: " + std::to_string(options.device) + ", expected -1");
  return std::make_unique<CpuExecutor>(std::move(program), options, progress);
}

}  // namespace glmlite
