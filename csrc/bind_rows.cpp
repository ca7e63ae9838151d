// Entry points of the row, RoPE and attention kernels, for tests and benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "bind_isa.h"
#include "cpu/kernels.h"
#include "cpu/team.h"
#include "memory.h"

namespace py = pybind11;

namespace glmlite {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Rows = Array<float>;

// 64-byte aligned, as kernels want their scratch.
struct alignas(64) Line {
  char bytes[64];
};

template <class T>
void expect_shape(const char* name, const Array<T>& array, std::vector<py::ssize_t> shape) {
  std::vector<py::ssize_t> is(array.shape(), array.shape() + array.ndim());
  if (is == shape) return;
  auto text = [](const std::vector<py::ssize_t>& s) {
    std::string t;
    for (auto n : s) t += (t.empty() ? "" : ", ") + std::to_string(n);
    return "(" + t + ")";
  };
  throw std::invalid_argument(std::string(name) + ": shape is " + text(is) + ", expected " + text(shape));
}

template <class T>
void expect_dims(const char* name, const Array<T>& array, py::ssize_t ndim) {
  if (array.ndim() != ndim)
    throw std::invalid_argument(std::string(name) + ": has " + std::to_string(array.ndim()) + " dimensions, expected " +
                                std::to_string(ndim));
}

// A new (rows, n) array, each row filled by op(row) with the GIL released.
template <class Op>
Rows fill_rows(py::ssize_t rows, py::ssize_t n, Op op) {
  Rows y({rows, n});
  float* out = y.mutable_data();
  py::gil_scoped_release release;
  for (py::ssize_t r = 0; r < rows; ++r) op(r, out + r * n);
  return y;
}

Rows kernel_rms_norm(const std::string& isa, Rows x, Rows w, std::optional<Rows> add, float eps) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  expect_shape("w", w, {n});
  if (add) expect_shape("add", *add, {x.shape(0), n});
  const float *in = x.data(), *weights = w.data(), *adds = add ? add->data() : nullptr;
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) {
    kernels.rms_norm(in + r * n, weights, adds ? adds + r * n : nullptr, y, n, eps);
  });
}

Rows kernel_layer_norm(const std::string& isa, Rows x, Rows w, Rows b, float eps) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  expect_shape("w", w, {n});
  expect_shape("b", b, {n});
  const float *in = x.data(), *weights = w.data(), *bias = b.data();
  return fill_rows(x.shape(0), n,
                   [&](py::ssize_t r, float* y) { kernels.layer_norm(in + r * n, weights, bias, y, n, eps); });
}

Rows kernel_swiglu(const std::string& isa, Rows x) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  if (x.shape(1) % 2) throw std::invalid_argument("x: has an odd number of columns, expected gate and up side by side");
  py::ssize_t n = x.shape(1) / 2;
  const float* in = x.data();
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) { kernels.swiglu(in + r * 2 * n, y, n); });
}

Rows kernel_gelu(const std::string& isa, Rows x, bool exact) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  py::ssize_t n = x.shape(1);
  const float* in = x.data();
  const auto gelu = exact ? kernels.gelu_erf : kernels.gelu;
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) { gelu(in + r * n, y, n); });
}

Rows kernel_rope(const std::string& isa, Rows x, Array<int32_t> first, Array<int32_t> second, Rows cos, Rows sin) {
  const CpuKernels& kernels = cpu_kernels(isa.c_str());
  expect_dims("x", x, 2);
  expect_dims("first", first, 1);
  py::ssize_t n = x.shape(1), pairs = first.shape(0);
  expect_shape("second", second, {pairs});
  expect_shape("cos", cos, {pairs});
  expect_shape("sin", sin, {pairs});
  for (const auto* side : {&first, &second})
    for (py::ssize_t i = 0; i < pairs; ++i)
      if (side->at(i) < 0 || side->at(i) >= n)
        throw std::invalid_argument("rope: a pair names column " + std::to_string(side->at(i)) + " of " +
                                    std::to_string(n));
  RopePairs turn{first.data(), second.data(), pairs};
  const float *in = x.data(), *cosines = cos.data(), *sines = sin.data();
  return fill_rows(x.shape(0), n, [&](py::ssize_t r, float* y) {
    std::copy(in + r * n, in + (r + 1) * n, y);
    kernels.rope(y, turn, cosines, sines);
  });
}

// The rows as the executor gives them to the kernels of a type of page.
std::vector<float> turned(const CpuKernels& kernels, KvType type, const Rows& rows) {
  std::vector<float> x(rows.data(), rows.data() + rows.size());
  const int64_t head_dim = rows.shape(rows.ndim() - 1);
  if (type == KvType::kQ8) {
    for (float* row = x.data(); row < x.data() + x.size(); row += head_dim) kernels.rotate(row, head_dim);
  }
  return x;
}

// The same of queries and entries of latent attention.
std::vector<float> turned_parts(const CpuKernels& kernels, KvType type, const Rows& rows, int64_t latent) {
  std::vector<float> x(rows.data(), rows.data() + rows.size());
  const int64_t columns = rows.shape(1);
  if (type == KvType::kQ8) {
    for (float* row = x.data(); row < x.data() + x.size(); row += columns) {
      kernels.rotate(row, latent);
      kernels.rotate(row + latent, columns - latent);
    }
  }
  return x;
}

void expect_visible(const Array<int64_t>& visible, py::ssize_t queries, int64_t ctx) {
  expect_shape("visible", visible, {queries});
  for (int64_t i = 0; i < queries; ++i)
    if (visible.at(i) < 1 || visible.at(i) > ctx)
      throw std::invalid_argument("visible: " + std::to_string(visible.at(i)) + ", expected 1 to " +
                                  std::to_string(ctx));
}

// Memory for pages; what nobody writes is large but finite, 61216 as f16, so that a kernel shows it if it reads it.
Memory marked_pages(size_t nbytes) {
  Memory memory(nbytes, "KV pages");
  std::memset(memory.data(), 0x7b, memory.size());
  return memory;
}

// A team that attends as the engine does it: threads take chunks of a context, and the chunks of each head are then
// merged in order.
class ChunkTeam {
 public:
  struct Place {
    int64_t head, chunk;
  };
  // What one call of a kernel computes, and where: of the queries [begin, begin + queries) of a head.
  struct Task {
    Place at, ahead;  // the chunk to attend to, and the one to fetch meanwhile
    int64_t begin, queries;
    float *max, *sum, *acc;
    void* scratch;
  };

  ChunkTeam(const CpuKernels& kernels, int threads) : kernels_(kernels), team_(checked(threads)) {}

  // attend(Task) for everything; then out (heads, queries, columns).
  template <class Attend>
  void run(int64_t heads, int64_t ctx, int64_t queries, int64_t columns, size_t scratch_bytes, float* out,
           Attend attend) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t chunks = (ctx + kChunkTokens - 1) / kChunkTokens;
    const size_t part = static_cast<size_t>(queries * (columns + 2)), of_head = part * static_cast<size_t>(chunks);
    parts_.resize(of_head * static_cast<size_t>(heads));
    const size_t scratch_lines = scratch_bytes / sizeof(Line) + 1;
    scratch_.resize(scratch_lines * static_cast<size_t>(team_.size()));
    team_.run([&](int thread) {
      int64_t task;
      // The next task is taken before this one is done, to know which keys to fetch meanwhile.
      for (bool more = team_.take(heads * chunks, &task); more;) {
        int64_t next;
        more = team_.take(heads * chunks, &next);
        const Place at = {task % heads, task / heads}, ahead = more ? Place{next % heads, next / heads} : at;
        float* to = parts_.data() + of_head * static_cast<size_t>(at.head) + part * static_cast<size_t>(at.chunk);
        for (int64_t begin = 0; begin < queries; begin += kMaxQueries) {
          attend(Task{at, ahead, begin, std::min(kMaxQueries, queries - begin), to + begin, to + queries + begin,
                      to + 2 * queries + begin * columns,
                      scratch_.data() + scratch_lines * static_cast<size_t>(thread)});
        }
        task = next;
      }
      team_.barrier();
      while (team_.take(heads, &task)) {
        float* state = parts_.data() + of_head * static_cast<size_t>(task);
        for (int64_t i = 0; i < queries; ++i) {
          float* acc = state + 2 * queries + i * columns;
          for (int64_t c = 1; c < chunks; ++c) {
            const float* chunk = state + part * static_cast<size_t>(c);
            kernels_.attend_merge(state + i, state + queries + i, acc, chunk[i], chunk[queries + i],
                                  chunk + 2 * queries + i * columns, columns);
          }
          kernels_.attend_finish(acc, state[queries + i], out + (task * queries + i) * columns, columns);
        }
      }
    });
  }

  static constexpr int64_t kMaxQueries = 64;  // of one call of a kernel, as in the engine

 private:
  static int checked(int threads) {
    if (threads >= 1 && threads <= 1024) return threads;
    throw std::invalid_argument("threads: " + std::to_string(threads) + ", expected 1 to 1024");
  }

  const CpuKernels& kernels_;
  Team team_;
  std::mutex mutex_;          // one call at a time
  std::vector<float> parts_;  // (heads, chunks) of max (M), sum (M), acc (M, columns)
  std::vector<Line> scratch_;
};

// What some KV heads keep of a context, in pages, and a team of threads: stored once, attended to many times.
class KvPages {
 public:
  KvPages(const std::string& isa, const Rows& k, const Rows& v, const std::string& kv_type, int threads)
      : kernels_(kernels_named(isa)), type_(kv_type_named(kv_type.c_str())), team_(kernels_, threads) {
    expect_dims("k", k, 3);
    heads_ = k.shape(0);
    ctx_ = k.shape(1);
    head_dim_ = k.shape(2);
    expect_shape("v", v, {heads_, ctx_, head_dim_});
    const std::vector<float> k_rows = turned(kernels_, type_, k);
    const float* v_rows = v.data();

    py::gil_scoped_release release;
    pages_ = (ctx_ + kPageTokens - 1) / kPageTokens;
    bytes_ = (glmlite::kv_bytes(type_, head_dim_) + 63) / 64 * 64;
    memory_ = marked_pages(static_cast<size_t>(2 * heads_ * pages_) * bytes_);
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t i = 0; i < ctx_; ++i) {
        const int64_t row = (h * ctx_ + i) * head_dim_;
        if (!kernels_.store_kv[static_cast<int>(type_)](k_rows.data() + row, v_rows + row, head_dim_,
                                                        k_page(h, i / kPageTokens), v_page(h, i / kPageTokens),
                                                        i % kPageTokens))
          throw std::invalid_argument("attend: position " + std::to_string(i) + " of k or v is not finite");
      }
    }
  }

  size_t nbytes() const { return memory_.size(); }

  void attend(const Rows& q, const Array<int64_t>& visible, float scale, Rows& y) {
    expect_dims("q", q, 3);
    const int64_t queries = q.shape(1);
    expect_shape("q", q, {heads_, queries, head_dim_});
    expect_shape("y", y, {heads_, queries, head_dim_});
    expect_visible(visible, queries, ctx_);
    const std::vector<float> q_rows = turned(kernels_, type_, q);
    const int64_t* sees = visible.data();
    float* out = y.mutable_data();

    py::gil_scoped_release release;
    team_.run(heads_, ctx_, queries, head_dim_, attend_scratch_bytes(queries, head_dim_), out,
              [&](const ChunkTeam::Task& task) {
                const float* q_pointers[ChunkTeam::kMaxQueries];
                for (int64_t i = 0; i < task.queries; ++i)
                  q_pointers[i] = q_rows.data() + (task.at.head * queries + task.begin + i) * head_dim_;
                const Pages pages = find(task.at), ahead = find(task.ahead);
                AttendArgs args;
                args.q = q_pointers;
                args.queries = task.queries;
                args.head_dim = head_dim_;
                args.scale = scale;
                args.k = pages.k;
                args.v = pages.v;
                args.ahead = ahead.k;
                args.begin = task.at.chunk * kChunkTokens;
                args.end = std::min(args.begin + kChunkTokens, ctx_);
                args.visible = sees + task.begin;
                args.max = task.max;
                args.sum = task.sum;
                args.acc = task.acc;
                args.scratch = task.scratch;
                kernels_.attend[static_cast<int>(type_)](args);
              });
  }

 private:
  struct Pages {
    const uint8_t *k[kChunkPages], *v[kChunkPages];
  };

  uint8_t* k_page(int64_t head, int64_t page) const {
    return memory_.data() + static_cast<size_t>(2 * (head * pages_ + page)) * bytes_;
  }
  uint8_t* v_page(int64_t head, int64_t page) const { return k_page(head, page) + bytes_; }
  Pages find(ChunkTeam::Place at) const {  // beyond the context, the last page again
    Pages pages;
    for (int64_t i = 0; i < kChunkPages; ++i) {
      const int64_t page = std::min(at.chunk * kChunkPages + i, pages_ - 1);
      pages.k[i] = k_page(at.head, page);
      pages.v[i] = v_page(at.head, page);
    }
    return pages;
  }

  const CpuKernels& kernels_;
  const KvType type_;
  ChunkTeam team_;
  int64_t heads_ = 0, ctx_ = 0, head_dim_ = 0, pages_ = 0;
  size_t bytes_ = 0;  // of the keys, or values, of a page
  Memory memory_;
};

// The entries of a context for latent attention, likewise.
class LatentPages {
 public:
  LatentPages(const std::string& isa, const Rows& entries, int64_t latent, const std::string& kv_type, int threads)
      : kernels_(kernels_named(isa)), type_(kv_type_named(kv_type.c_str())), latent_(latent), team_(kernels_, threads) {
    expect_dims("entries", entries, 2);
    ctx_ = entries.shape(0);
    rope_ = entries.shape(1) - latent;
    if (latent < 16 || latent % 16 || rope_ < 2 || rope_ % 2)
      throw std::invalid_argument("latent: " + std::to_string(latent) + " of " + std::to_string(entries.shape(1)) +
                                  " columns, expected a multiple of 16 and an even number of others");
    const std::vector<float> rows = turned_parts(kernels_, type_, entries, latent);

    py::gil_scoped_release release;
    pages_ = (ctx_ + kPageTokens - 1) / kPageTokens;
    bytes_ = latent_bytes(type_, latent_, rope_);
    memory_ = marked_pages(static_cast<size_t>(pages_) * bytes_);
    for (int64_t i = 0; i < ctx_; ++i) {
      if (!kernels_.store_latent[static_cast<int>(type_)](rows.data() + i * (latent_ + rope_), latent_, rope_,
                                                          page(i / kPageTokens), i % kPageTokens))
        throw std::invalid_argument("entries: position " + std::to_string(i) + " is not finite");
    }
  }

  size_t nbytes() const { return memory_.size(); }

  void attend(const Rows& q, const Array<int64_t>& visible, float scale, Rows& y) {
    expect_dims("q", q, 2);
    const int64_t queries = q.shape(0), columns = latent_ + rope_;
    expect_shape("q", q, {queries, columns});
    expect_shape("y", y, {queries, latent_});
    expect_visible(visible, queries, ctx_);
    const std::vector<float> q_rows = turned_parts(kernels_, type_, q, latent_);
    const int64_t* sees = visible.data();
    float* out = y.mutable_data();

    py::gil_scoped_release release;
    team_.run(1, ctx_, queries, latent_, attend_latent_scratch_bytes(queries, latent_, rope_), out,
              [&](const ChunkTeam::Task& task) {
                const float* q_pointers[ChunkTeam::kMaxQueries];
                for (int64_t i = 0; i < task.queries; ++i) q_pointers[i] = q_rows.data() + (task.begin + i) * columns;
                const uint8_t *pages[kChunkPages], *ahead[kChunkPages];
                for (int64_t i = 0; i < kChunkPages; ++i) {  // beyond the context, the last page again
                  pages[i] = page(std::min(task.at.chunk * kChunkPages + i, pages_ - 1));
                  ahead[i] = page(std::min(task.ahead.chunk * kChunkPages + i, pages_ - 1));
                }
                LatentArgs args;
                args.q = q_pointers;
                args.queries = task.queries;
                args.latent = latent_;
                args.rope = rope_;
                args.scale = scale;
                args.pages = pages;
                args.ahead = ahead;
                args.begin = task.at.chunk * kChunkTokens;
                args.end = std::min(args.begin + kChunkTokens, ctx_);
                args.visible = sees + task.begin;
                args.max = task.max;
                args.sum = task.sum;
                args.acc = task.acc;
                args.scratch = task.scratch;
                kernels_.attend_latent[static_cast<int>(type_)](args);
              });
    if (type_ == KvType::kQ8) {
      for (int64_t i = 0; i < queries; ++i) kernels_.rotate(out + i * latent_, latent_);
    }
  }

 private:
  uint8_t* page(int64_t i) const { return memory_.data() + static_cast<size_t>(i) * bytes_; }

  const CpuKernels& kernels_;
  const KvType type_;
  const int64_t latent_;
  ChunkTeam team_;
  int64_t ctx_ = 0, rope_ = 0, pages_ = 0;
  size_t bytes_ = 0;  // of a page
  Memory memory_;
};

Rows kernel_attend(const std::string& isa, Rows q, Rows k, Rows v, Array<int64_t> visible, float scale,
                   const std::string& kv_type) {
  expect_dims("q", q, 2);
  expect_dims("k", k, 2);
  expect_dims("v", v, 2);
  const auto one_head = [](Rows& x) { return Rows(x.reshape({py::ssize_t{1}, x.shape(0), x.shape(1)})); };
  Rows y({py::ssize_t{1}, q.shape(0), q.shape(1)});
  KvPages(isa, one_head(k), one_head(v), kv_type, 1).attend(one_head(q), visible, scale, y);
  return Rows(y.reshape({q.shape(0), q.shape(1)}));
}

}  // namespace

void bind_rows(py::module_& m) {
  auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("kernel_rms_norm", kernel_rms_norm, py::arg("isa"), array("x"), array("w"), array("add").none(true),
        py::arg("eps"));
  m.def("kernel_layer_norm", kernel_layer_norm, py::arg("isa"), array("x"), array("w"), array("b"), py::arg("eps"));
  m.def("kernel_swiglu", kernel_swiglu, py::arg("isa"), array("x"));
  m.def("kernel_gelu", kernel_gelu, py::arg("isa"), array("x"), py::kw_only(), py::arg("exact") = false);
  m.def("kernel_rope", kernel_rope, py::arg("isa"), array("x"), array("first"), array("second"), array("cos"),
        array("sin"));
  py::class_<KvPages>(m, "KvPages")
      .def(py::init<const std::string&, const Rows&, const Rows&, const std::string&, int>(), py::arg("isa"),
           array("k"), array("v"), py::arg("kv_type") = "f16", py::arg("threads") = 1)
      .def_property_readonly("nbytes", &KvPages::nbytes)
      .def("attend", &KvPages::attend, array("q"), array("visible"), py::arg("scale"), array("y"));
  py::class_<LatentPages>(m, "LatentPages")
      .def(py::init<const std::string&, const Rows&, int64_t, const std::string&, int>(), py::arg("isa"),
           array("entries"), py::arg("latent"), py::arg("kv_type") = "f16", py::arg("threads") = 1)
      .def_property_readonly("nbytes", &LatentPages::nbytes)
      .def("attend", &LatentPages::attend, array("q"), array("visible"), py::arg("scale"), array("y"));
  m.def("kernel_attend", kernel_attend, py::arg("isa"), array("q"), array("k"), array("v"), array("visible"),
        py::arg("scale"), py::arg("kv_type") = "f16");
}

}  // namespace glmlite
