// Kernel entry points for tests and benchmarks: products, quantizing, unpacking. Those of rows are in bind_rows.cpp.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "bind_isa.h"
#include "cpu/cores.h"
#include "cpu/measure.h"
#include "cpu/pack.h"
#include "cpu/team.h"
#include "dequantize.h"
#include "memory.h"
#include "sampler.h"

namespace py = pybind11;

namespace glmlite {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// `count` values, the first on a 64-byte boundary.
template <class T>
class Aligned {
 public:
  explicit Aligned(size_t count) : bytes_(count * sizeof(T) + 64) {
    const size_t at = reinterpret_cast<uintptr_t>(bytes_.data()) % 64;
    data_ = reinterpret_cast<T*>(bytes_.data() + (64 - at) % 64);
  }
  T* data() { return data_; }

 private:
  std::vector<uint8_t> bytes_;
  T* data_;
};

Format named_format(const std::string& name) {
  std::string known;
  for (int i = 0; i < kFormatCount; ++i) {
    const Format format = static_cast<Format>(i);
    if (name == format_info(format).name) return format;
    known += (i ? ", " : "") + std::string(format_info(format).name);
  }
  throw std::invalid_argument("format '" + name + "' is unknown; known: " + known);
}

std::string shape(const py::array& a) {
  std::string s = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) s += (i ? ", " : "") + std::to_string(a.shape(i));
  return s + ")";
}

// Values per row of rows in `format`.
int64_t columns(const char* where, Format format, const Array<uint8_t>& rows) {
  const FormatInfo& info = format_info(format);
  if (rows.ndim() != 2 || rows.shape(1) == 0 || rows.shape(1) % info.block_bytes) {
    throw std::invalid_argument(std::string(where) + ": rows are " + shape(rows) +
                                ", expected (n, bytes) with bytes a multiple of " + std::to_string(info.block_bytes) +
                                ", a block of " + info.name);
  }
  return rows.shape(1) / info.block_bytes * info.block_values;
}

void need_matrix(const char* where, const Array<float>& x, int64_t columns, const std::string& expected) {
  if (x.ndim() == 2 && x.shape(1) == columns) return;
  throw std::invalid_argument(std::string(where) + ": x is " + shape(x) + ", expected " + expected);
}

// A matrix in panels and a team of threads to multiply with it: packed once, multiplied many times.
class PackedMatrix {
 public:
  PackedMatrix(const std::string& isa, const std::string& format_name, const Array<uint8_t>& rows, int threads)
      : kernels_(kernels_named(isa)),
        format_(named_format(format_name)),
        n_(rows.ndim() ? rows.shape(0) : 0),
        k_(columns("PackedMatrix", format_, rows)),
        team_(checked(threads)),
        panels_(packed_bytes(format_, n_, k_), "a packed matrix") {
    const uint8_t* from = rows.data();
    const int64_t row_bytes = rows.shape(1);
    py::gil_scoped_release release;
    team_.run([&](int thread) {
      const int64_t begin = count() * thread / team_.size(), end = count() * (thread + 1) / team_.size();
      pack_panels(format_, from + begin * kLanes * row_bytes, n_, k_, begin, end,
                  panels_.data() + packed_bytes(format_, begin * kLanes, k_));
    });
  }

  size_t nbytes() const { return panels_.size(); }

  void multiply(const Array<float>& x, Array<float>& y) {
    need_matrix("multiply", x, k_, "(T, " + std::to_string(k_) + ")");
    const int64_t tokens = x.shape(0);
    if (y.ndim() != 2 || y.shape(0) != tokens || y.shape(1) != n_) {
      throw std::invalid_argument("multiply: y is " + shape(y) + ", expected (" + std::to_string(tokens) + ", " +
                                  std::to_string(n_) + ")");
    }
    const float* from = x.data();
    float* to = y.mutable_data();

    py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (tokens > capacity_) {
      act_ = Memory(static_cast<size_t>(act_bytes(k_, tokens)), "activations");
      scratch_bytes_ = (linear_scratch_bytes(tokens) + 63) / 64 * 64;
      scratch_ = Memory(scratch_bytes_ * static_cast<size_t>(team_.size()), "scratch");
      capacity_ = tokens;
    }
    team_.run([&](int thread) {
      if (k_ % kActBlock == 0) {
        kernels_.quantize(from, k_, tokens * thread / team_.size(), tokens * (thread + 1) / team_.size(), tokens,
                          act_.data());
      }
      team_.barrier();
      const int64_t step = std::max<int64_t>(1, count() / (team_.size() * 8));  // as the engine splits them
      int64_t task;
      while (team_.take((count() + step - 1) / step, &task)) {
        kernels_.linear[static_cast<int>(format_)]({panels_.data(),
                                                    k_,
                                                    n_,
                                                    task * step,
                                                    std::min((task + 1) * step, count()),
                                                    {from, act_.data()},
                                                    tokens,
                                                    to,
                                                    n_,
                                                    scratch_.data() + scratch_bytes_ * static_cast<size_t>(thread)});
      }
    });
  }

 private:
  static int checked(int threads) {
    if (threads >= 1 && threads <= 1024) return threads;
    throw std::invalid_argument("PackedMatrix: threads is " + std::to_string(threads) + ", expected 1 to 1024");
  }
  int64_t count() const { return (n_ + kLanes - 1) / kLanes; }

  const CpuKernels& kernels_;
  const Format format_;
  const int64_t n_, k_;
  Team team_;
  const Memory panels_;
  std::mutex mutex_;  // one product at a time
  int64_t capacity_ = 0;
  Memory act_, scratch_;
  size_t scratch_bytes_ = 0;  // of one thread
};

Array<float> kernel_linear(const std::string& isa, const std::string& format, const Array<uint8_t>& rows,
                           const Array<float>& x, int threads) {
  PackedMatrix w(isa, format, rows, threads);
  Array<float> y({x.ndim() ? x.shape(0) : 0, rows.shape(0)});
  w.multiply(x, y);
  return y;
}

py::tuple kernel_quantize(const std::string& isa, const Array<float>& x) {
  const CpuKernels& kernels = kernels_named(isa);
  if (x.ndim() != 2 || x.shape(1) % kActBlock) {
    throw std::invalid_argument("kernel_quantize: x is " + shape(x) + ", expected (T, k) with k a multiple of 32");
  }
  const int64_t tokens = x.shape(0), k = x.shape(1), blocks = k / kActBlock;
  Array<int8_t> q({tokens, k});
  Array<float> d({tokens, blocks});
  Array<int32_t> sums({tokens, 2 * blocks});
  Aligned<uint8_t> act(static_cast<size_t>(act_bytes(k, 1)));
  for (int64_t t = 0; t < tokens; ++t) {
    kernels.quantize(x.data(t, 0), k, 0, 1, 1, act.data());
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* super = act.data() + b / 8 * kActSuperBytes;
      std::memcpy(q.mutable_data(t, b * kActBlock), super + b % 8 * kActBlock, kActBlock);
      const auto field = [&](int i) { return super + 256 + (8 * i + b % 8) * 4; };
      std::memcpy(d.mutable_data(t, b), field(kActScale), 4);
      for (int half = 0; half < 2; ++half) {
        int32_t sum;
        std::memcpy(&sum, field(kActSums4 + half), 4);
        *sums.mutable_data(t, 2 * b + half) = (kSumOriginBits - sum) / 4;
      }
    }
  }
  return py::make_tuple(q, d, sums);
}

Array<float> kernel_unpack_row(const std::string& isa, const std::string& format_name, const Array<uint8_t>& rows,
                               int64_t k, int64_t row) {
  const CpuKernels& kernels = kernels_named(isa);
  const Format format = named_format(format_name);
  const int64_t held = columns("kernel_unpack_row", format, rows);
  if (k != held || row < 0 || row >= rows.shape(0)) {
    throw std::invalid_argument("kernel_unpack_row: row " + std::to_string(row) + " of " + std::to_string(k) +
                                " values, expected a row of (" + std::to_string(rows.shape(0)) + ", " +
                                std::to_string(held) + ")");
  }
  const int64_t n = rows.shape(0);
  Aligned<uint8_t> packed(packed_bytes(format, n, k));
  pack_panels(format, rows.data(), n, k, 0, (n + kLanes - 1) / kLanes, packed.data());
  Array<float> x(k);
  kernels.unpack_row[static_cast<int>(format)](packed.data(), k, row, x.mutable_data());
  return x;
}

Array<float> dequantize(const std::string& format_name, const Array<uint8_t>& rows) {
  const Format format = named_format(format_name);
  const int64_t k = columns("dequantize", format, rows), n = rows.shape(0);
  Array<float> y({n, k});
  for (int64_t r = 0; r < n; ++r) dequantize_row(format, rows.data(r, 0), k, y.mutable_data(r, 0));
  return y;
}

Array<uint64_t> draw_weights(const Array<float>& logits, double temperature) {
  SamplerOptions options;
  options.set("temperature", temperature);
  const Draw draw = Sampler(options).request(logits.size()).draw;
  const float max = *std::max_element(logits.data(), logits.data() + logits.size());
  Array<uint64_t> weights(logits.size());
  for (py::ssize_t i = 0; i < logits.size(); ++i) {
    const float logit = logits.data()[i];
    weights.mutable_data()[i] = draw.bin(logit, max) < kBins - 1 ? draw.weight(logit, max) : 0;
  }
  return weights;
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("isas", [] {
    std::vector<std::string> names;
    int count;
    const CpuKernels* const* sets = cpu_kernel_sets(&count);
    for (int i = 0; i < count; ++i) {
      if (sets[i]->supported()) names.push_back(sets[i]->name);
    }
    return names;
  });
  m.def("built_isas", [] {
    std::vector<std::string> names;
    int count;
    const CpuKernels* const* sets = cpu_kernel_sets(&count);
    for (int i = 0; i < count; ++i) names.push_back(sets[i]->name);
    return names;
  });
  m.def("default_isa", [] { return std::string(kernels_named("").name); });
  m.def("default_threads", default_threads);
  m.def("machine_bandwidth", machine_bandwidth, py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "machine_int8_peak",
      [](int threads, const std::string& isa) {
        const char* name = kernels_named(isa).name;
        py::gil_scoped_release nogil;
        return machine_int8_peak(threads, name);
      },
      py::arg("threads"), py::arg("isa") = "");
  m.def(
      "machine_f32_peak",
      [](int threads, const std::string& isa) {
        const char* name = kernels_named(isa).name;
        py::gil_scoped_release nogil;
        return machine_f32_peak(threads, name);
      },
      py::arg("threads"), py::arg("isa") = "");
  m.def("machine_clock", machine_clock, py::call_guard<py::gil_scoped_release>());
  py::class_<PackedMatrix>(m, "PackedMatrix")
      .def(py::init<const std::string&, const std::string&, const Array<uint8_t>&, int>(), py::arg("isa"),
           py::arg("format"), py::arg("rows").noconvert(), py::arg("threads") = 1)
      .def_property_readonly("nbytes", &PackedMatrix::nbytes)
      .def("multiply", &PackedMatrix::multiply, py::arg("x").noconvert(), py::arg("y").noconvert());
  m.def("kernel_linear", kernel_linear, py::arg("isa"), py::arg("format"), py::arg("rows").noconvert(),
        py::arg("x").noconvert(), py::arg("threads") = 1);
  m.def("kernel_quantize", kernel_quantize, py::arg("isa"), py::arg("x").noconvert());
  m.def("kernel_unpack_row", kernel_unpack_row, py::arg("isa"), py::arg("format"), py::arg("rows").noconvert(),
        py::arg("k"), py::arg("row"));
  m.def("draw_weights", draw_weights, py::arg("logits").noconvert(), py::arg("temperature"));
  m.def("dequantize", dequantize, py::arg("format"), py::arg("rows").noconvert());
}

}  // namespace glmlite
