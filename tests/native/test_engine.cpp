// The engine on a tiny random model, for the sanitizers: every op, several threads, calls and cancels from many.
#include <chrono>
#include <random>
#include <thread>

#include "check.h"
#include "engine.h"
#include "errors.h"
#include "gguf_bytes.h"

using namespace glmlite;

namespace {

constexpr int kDim = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kFfn = 96, kVocab = 50;

// A file of two matrices' formats, filled with small random numbers.
class ModelFile {
 public:
  ModelFile() {
    add("embd", {kDim, kVocab}, Format::kF16);
    for (int layer = 0; layer < 2; ++layer) {
      const std::string l = std::to_string(layer);
      add("norm" + l, {kDim}, Format::kF32);
      add("qkv" + l, {kDim, (kHeads + 2 * kKvHeads) * kHeadDim}, Format::kQ8_0);
      add("bias" + l, {(kHeads + 2 * kKvHeads) * kHeadDim}, Format::kF32);
      add("out" + l, {kHeads * kHeadDim, kDim}, Format::kQ4_0);
      add("up" + l, {kDim, 2 * kFfn}, Format::kQ4_0);
      add("down" + l, {kFfn, kDim}, Format::kF32);
    }
    add("k", {kKvHeads * kHeadDim, 3}, Format::kF32);
    add("v", {kKvHeads * kHeadDim, 3}, Format::kF32);
    path_ = folder_.write("tiny.gguf", builder_.bytes());
  }
  const std::string& path() const { return path_; }

 private:
  void add(const std::string& name, const std::vector<uint64_t>& dims, Format format) {
    uint64_t values = 1;
    for (uint64_t d : dims) values *= d;
    builder_.data.resize((builder_.data.size() + 31) / 32 * 32);
    builder_.tensors.push_back(tensor(name, dims, format_info(format).gguf_type, builder_.data.size()));
    const FormatInfo& info = format_info(format);
    for (uint64_t block = 0; block < values / info.block_values; ++block) {
      if (format == Format::kF32) {
        builder_.data += raw(std::normal_distribution<float>(0, 0.1f)(random_));
      } else if (format == Format::kF16) {
        builder_.data += raw(static_cast<uint16_t>(0x2000 + random_() % 0x1000 + (random_() % 2 << 15)));
      } else {
        builder_.data += raw(uint16_t{0x1c00});  // 2^-8
        for (int i = 2; i < info.block_bytes; ++i) builder_.data += static_cast<char>(random_());
      }
    }
  }

  Folder folder_;
  Builder builder_;
  std::mt19937 random_{7};
  std::string path_;
};

std::vector<OpSpec> program() {
  std::vector<OpSpec> ops;
  const auto add = [&](const char* kind, int64_t width, std::map<std::string, int> inputs,
                       std::map<std::string, std::vector<std::string>> weights, std::map<std::string, double> numbers) {
    OpSpec op;
    op.kind = kind;
    op.out = static_cast<int>(ops.size());
    op.width = width;
    op.inputs = std::move(inputs);
    op.weights = std::move(weights);
    op.numbers = std::move(numbers);
    ops.push_back(op);
    return op.out;
  };
  int x = add("embed", kDim, {}, {{"table", {"embd"}}}, {});
  for (int layer = 0; layer < 2; ++layer) {
    const std::string l = std::to_string(layer);
    const int h = add("rms_norm", kDim, {{"x", x}}, {{"w", {"norm" + l}}}, {{"eps", 1e-5}});
    const int qkv = add("linear", (kHeads + 2 * kKvHeads) * kHeadDim, {{"x", h}},
                        {{"w", {"qkv" + l}}, {"b", {"bias" + l}}}, {{"alpha", 1}});
    const int att = add("attention", kHeads * kHeadDim, {{"qkv", qkv}}, {{"prefix", {"k", "v"}}},
                        {{"layer", layer},
                         {"heads", kHeads},
                         {"kv_heads", kKvHeads},
                         {"head_dim", kHeadDim},
                         {"scale", 0.25},
                         {"norm_eps", 0}});
    RopeTable& rope = ops.back().rope;
    ops.back().has_rope = true;
    for (int i = 0; i < kHeadDim / 2; ++i) {
      rope.first.push_back(2 * i);
      rope.second.push_back(2 * i + 1);
      rope.axis.push_back(i % 2);
      rope.freq.push_back(1.0 / (i + 1));
    }
    const int y = add("linear", kDim, {{"x", att}, {"add", x}}, {{"w", {"out" + l}}}, {{"alpha", 2}});
    const int up = add("linear", 2 * kFfn, {{"x", y}}, {{"w", {"up" + l}}}, {{"alpha", 1}});
    const int act = add("swiglu", kFfn, {{"x", up}}, {}, {});
    const int gelu = add("gelu", kFfn, {{"x", act}}, {}, {});
    x = add("linear", kDim, {{"x", gelu}, {"add", y}}, {{"w", {"down" + l}}}, {{"alpha", 1}});
  }
  x = add("select", kDim, {{"x", x}}, {}, {});
  x = add("layer_norm", kDim, {{"x", x}}, {{"w", {"norm0"}}, {"b", {"norm1"}}}, {{"eps", 1e-5}});
  add("linear", kVocab, {{"x", x}}, {{"w", {"embd"}}}, {{"alpha", 1}});
  return ops;
}

// Both parts of a split program on the CPU.
std::unique_ptr<Executor> make_halves(Program program, const ExecutorOptions& options, const LoadProgress& progress) {
  auto parts = program.split(1);
  const size_t first = parts.first.ops.size(), second = parts.second.ops.size();
  return make_hybrid_executor(make_cpu_executor(std::move(parts.first), options, progress),
                              make_cpu_executor(std::move(parts.second), options, progress), first, second);
}

std::unique_ptr<Engine> open(const ModelFile& file, int threads, int64_t kv_tokens = 1024,
                             ExecutorFactory make = make_cpu_executor) {
  const Gguf gguf(file.path());
  EngineOptions options;
  options.threads = threads;
  options.kv_tokens = kv_tokens;
  options.make = make;
  return std::make_unique<Engine>(gguf, program(), options, LoadProgress());
}

Work work(int sequence, int count, int start = 0, uint32_t seed = 0) {
  Work w;
  w.sequence = sequence;
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) {
    w.tokens.push_back(static_cast<int32_t>(random() % kVocab));
    w.positions.push_back({start + i, i % 3});
  }
  w.next_position = {start + count, start + count, start + count};
  return w;
}

std::vector<Sample> generate(Engine& engine, uint32_t seed, int count) {
  Work w = work(engine.new_sequence(), 20 + static_cast<int>(seed) % 60, 0, seed);
  SamplerOptions options;
  options.set("temperature", 1);
  options.set("repetition_penalty", 1.1);
  options.set("top_p", 0.95);
  options.logprobs = 2;
  options.seed = seed;
  w.sampler = std::make_shared<Sampler>(options);
  w.budget = count;
  auto samples = engine.run({w}, 1e9, nullptr);
  engine.free(w.sequence);
  return samples[0];
}

bool same(const std::vector<Sample>& a, const std::vector<Sample>& b) {
  bool equal = a.size() == b.size();
  for (size_t i = 0; equal && i < a.size(); ++i) equal = a[i].token == b[i].token && a[i].logprob == b[i].logprob;
  return equal;
}

}  // namespace

TEST(chunks_and_threads_do_not_matter) {
  const ModelFile file;
  auto one = open(file, 1), three = open(file, 3);
  const auto whole = one->step({work(one->new_sequence(), 300)}, {0, 63, 64, 255, 256, 299}, nullptr);
  CHECK(whole.size() == 6 * kVocab);
  CHECK(three->step({work(three->new_sequence(), 300)}, {0, 63, 64, 255, 256, 299}, nullptr) == whole);
  const int sequence = three->new_sequence();
  Work all = work(sequence, 300), part = all;
  std::vector<float> last;
  for (int at = 0; at < 300; at += 25) {
    part.tokens.assign(all.tokens.begin() + at, all.tokens.begin() + at + 25);
    part.positions.assign(all.positions.begin() + at, all.positions.begin() + at + 25);
    last = three->step({part}, {24}, nullptr);
  }
  CHECK(last == std::vector<float>(whole.end() - kVocab, whole.end()));
  CHECK(three->length(sequence) == 300);
}

TEST(many_threads_share_an_engine) {
  const ModelFile file;
  auto engine = open(file, 2);
  std::vector<std::vector<Sample>> alone;
  for (uint32_t seed = 0; seed < 6; ++seed) alone.push_back(generate(*engine, seed, 12));
  std::vector<std::thread> threads;
  std::vector<char> equal(6, 0);
  for (uint32_t seed = 0; seed < 6; ++seed)
    threads.emplace_back([&, seed] { equal[seed] = same(generate(*engine, seed, 12), alone[seed]); });
  for (auto& thread : threads) thread.join();
  for (char e : equal) CHECK(e);
  CHECK(engine->kv_free() == engine->info().kv_tokens);
}

TEST(cancelled_from_another_thread) {
  const ModelFile file;
  auto engine = open(file, 3);
  for (int i = 0; i < 20; ++i) {
    CancelFlag flag;
    const int sequence = engine->new_sequence();
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(200 * i));
      engine->progress();
      flag.set = true;
    });
    bool cancelled = false;
    try {
      for (int at = 0; at < 1000; at += 100) engine->step({work(sequence, 100, at)}, {99}, &flag);
    } catch (const Cancelled&) { cancelled = true; }
    other.join();
    CHECK(engine->length(sequence) % 100 == 0);
    CHECK(cancelled == (engine->length(sequence) < 1000));
    engine->free(sequence);
  }
}

TEST(closed_while_another_thread_computes) {
  const ModelFile file;
  for (int i = 0; i < 10; ++i) {
    auto engine = open(file, 2);
    std::thread other([&] {
      try {
        for (uint32_t seed = 0; seed < 1000; ++seed) generate(*engine, seed, 8);
        CHECK(false);
      } catch (const std::invalid_argument& e) { CHECK(std::string(e.what()).find("closed") != std::string::npos); }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    engine->close();
    other.join();
  }
}

TEST(forks_and_prefix) {
  const ModelFile file;
  auto engine = open(file, 2);
  CHECK(engine->info().prefix == 3);
  const int a = engine->new_sequence();
  engine->step({work(a, 70)}, {}, nullptr);
  const int b = engine->fork(a, 70);
  const auto x = engine->step({work(a, 5, 70)}, {4}, nullptr);
  CHECK(engine->step({work(b, 5, 70)}, {4}, nullptr) == x);
  engine->truncate(a, 70);
  CHECK(engine->step({work(a, 5, 70)}, {4}, nullptr) == x);
}

TEST(a_program_in_two_parts) {
  const ModelFile file;
  const Gguf gguf(file.path());
  const Program whole(gguf, program());
  CHECK(whole.layers() == 2);
  const auto [first, second] = whole.split(1);
  CHECK(first.layers() == 1 && second.layers() == 1);
  CHECK(first.vocab == kDim && second.vocab == kVocab);
  CHECK(second.ops[0].is<ops::Input>() && second.ops[1].is<ops::RmsNorm>());
  CHECK(first.ops.size() == 9 && first.ops.size() - 1 + second.ops.size() == whole.ops.size());
  for (int layers : {0, 2}) {
    bool refused = false;
    try {
      whole.split(layers);
    } catch (const std::invalid_argument&) { refused = true; }
    CHECK(refused);
  }

  auto one = open(file, 2), two = open(file, 2, 1024, make_halves);
  CHECK(two->info().kv_bytes == one->info().kv_bytes && two->info().prefix == 3);
  const int a = one->new_sequence(), b = two->new_sequence();
  for (int at : {0, 70, 71}) {
    const int count = at == 0 ? 70 : 1 + at % 2 * 9;
    std::map<int, std::vector<float>> values[2];
    const auto watch = [&](int engine) -> Watch {
      Watch w;
      w.value = [&, engine](int value, const float* rows, int64_t count, int64_t width) {
        CHECK(values[engine].emplace(value, std::vector<float>(rows, rows + count * width)).second);
      };
      return w;
    };
    const Watch watches[2] = {watch(0), watch(1)};
    const auto x = one->step({work(a, count, at)}, {0, count - 1}, nullptr, &watches[0]);
    CHECK(two->step({work(b, count, at)}, {0, count - 1}, nullptr, &watches[1]) == x);
    CHECK(values[0].size() == whole.ops.size() && values[0] == values[1]);
  }
  CHECK(same(generate(*two, 5, 12), generate(*one, 5, 12)));
  const int c = two->fork(b, 70);
  CHECK(two->step({work(c, 1, 70)}, {0}, nullptr) == one->step({work(one->fork(a, 70), 1, 70)}, {0}, nullptr));
  CHECK(two->progress() == 1);

  CancelFlag flag;
  flag.set = true;
  bool cancelled = false;
  try {
    two->step({work(c, 5, 71)}, {0}, &flag);
  } catch (const Cancelled&) { cancelled = true; }
  CHECK(cancelled && two->length(c) == 71);
}

RUN_TESTS()
