// Engine, Work, Sampler, Cancel. Everything that computes or waits releases the GIL and touches no Python object.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>

#include "bind.h"
#include "bind_isa.h"
#include "cpu/measure.h"
#include "engine.h"
#include "errors.h"
#include "memory.h"

namespace py = pybind11;

namespace glmlite {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using IntArray = py::array_t<int32_t, py::array::c_style>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> to_vector(const py::handle& value, const char* what) {
  try {
    return value.cast<std::vector<T>>();
  } catch (const py::cast_error&) { throw py::type_error(what); }
}

RopeTable to_rope(const py::dict& d) {
  RopeTable t;
  t.first = to_vector<int32_t>(d["first"], "rope: first must be integers");
  t.second = to_vector<int32_t>(d["second"], "rope: second must be integers");
  t.axis = to_vector<int32_t>(d["axis"], "rope: axis must be integers");
  t.freq = to_vector<double>(d["freq"], "rope: freq must be numbers");
  t.magnitude = d["magnitude"].cast<double>();
  return t;
}

OpSpec to_op(const py::tuple& op) {
  if (op.size() != 6) throw py::value_error("an op is (kind, out, width, inputs, weights, attributes)");
  OpSpec spec;
  spec.kind = op[0].cast<std::string>();
  spec.out = op[1].cast<int>();
  spec.width = op[2].cast<int64_t>();
  spec.inputs = op[3].cast<std::map<std::string, int>>();
  spec.weights = op[4].cast<std::map<std::string, std::vector<std::string>>>();
  for (const auto& [key, value] : op[5].cast<py::dict>()) {
    const auto slot = key.cast<std::string>();
    if (slot == "rope") {
      if (value.is_none()) continue;
      spec.has_rope = true;
      spec.rope = to_rope(value.cast<py::dict>());
    } else {
      spec.numbers[slot] = value.cast<double>();
    }
  }
  return spec;
}

Position to_position(const py::tuple& t) {
  if (t.size() != kAxes) throw py::value_error("a position is " + std::to_string(kAxes) + " integers");
  Position position;
  for (size_t axis = 0; axis < kAxes; ++axis) position[axis] = t[axis].cast<int32_t>();
  return position;
}

Work make_work(int sequence, const py::object& tokens, const IntArray& positions, int64_t visible,
               std::shared_ptr<Sampler> sampler, int64_t budget, const py::tuple& next_position,
               const py::tuple& position_step, const std::optional<FloatArray>& input,
               const std::optional<FloatArray>& embeddings) {
  Work w;
  w.sequence = sequence;
  w.tokens = to_vector<int32_t>(tokens, "Work: tokens must be integers that fit in 32 bits");
  if (positions.ndim() != 2 || positions.shape(1) != kAxes)
    throw py::value_error("Work: positions must be (tokens, " + std::to_string(kAxes) + ")");
  for (py::ssize_t i = 0; i < positions.shape(0); ++i) {
    w.positions.emplace_back();
    for (int axis = 0; axis < kAxes; ++axis) w.positions.back()[axis] = positions.at(i, axis);
  }
  w.visible = visible;
  w.sampler = std::move(sampler);
  if (budget < 1) throw py::value_error("Work: budget " + std::to_string(budget) + ", expected 1 or more");
  w.budget = budget;
  w.next_position = to_position(next_position);
  w.position_step = to_position(position_step);
  if (input) w.input.assign(input->data(), input->data() + input->size());
  if (embeddings) w.embeddings.assign(embeddings->data(), embeddings->data() + embeddings->size());
  return w;
}

std::shared_ptr<Sampler> make_sampler(uint64_t seed, const std::map<int32_t, double>& logit_bias, int logprobs,
                                      std::vector<int32_t> stop, int draft, const py::kwargs& options) {
  SamplerOptions o;
  for (const auto& [name, value] : options) {
    try {
      o.set(py::cast<std::string>(name), py::cast<double>(value));
    } catch (const py::cast_error&) {
      throw py::type_error("Sampler: " + py::cast<std::string>(name) + " is no number");
    } catch (const std::invalid_argument& error) { throw py::type_error(std::string("Sampler: ") + error.what()); }
  }
  o.seed = seed;
  o.logit_bias.assign(logit_bias.begin(), logit_bias.end());
  o.logprobs = logprobs;
  o.stop = std::move(stop);
  o.draft = draft;
  return std::make_shared<Sampler>(std::move(o));
}

// Sample as glmlite._native.Sample, a named tuple.
py::object to_python(const Sample& s, const py::object& type) {
  py::list top;
  for (const auto& [token, logprob] : s.top) top.append(py::make_tuple(token, logprob));
  return type(s.token, s.logprob, top);
}

std::vector<Work> to_works(const py::sequence& works) {
  std::vector<Work> result;
  for (const auto& w : works) result.push_back(w.cast<const Work&>());
  return result;
}

py::array_t<float> to_rows(const std::vector<float>& values, size_t rows, int64_t width) {
  py::array_t<float> y({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(width)});
  std::copy(values.begin(), values.end(), y.mutable_data());
  return y;
}

// Called without the GIL.
LoadProgress to_progress(const py::object& progress) {
  return [&progress](uint64_t done, uint64_t total) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C stops a load
    if (progress.is_none()) return true;
    const py::object more = progress(done, total);
    return more.is_none() || more.cast<bool>();
  };
}

std::unique_ptr<Engine> make_engine(const Gguf& file, const py::sequence& ops, int64_t kv_tokens,
                                    const std::string& kv_type, int threads, bool adaptive, bool background,
                                    const std::string& isa, const py::object& progress, int device, int gpu_layers,
                                    std::shared_ptr<const PackedFile> packed, int64_t weight_room,
                                    ExecutorFactory make) {
  const std::vector<OpSpec> specs = to_ops(ops);
  EngineOptions options;
  options.device = device;
  options.gpu_layers = gpu_layers;
  options.packed = std::move(packed);
  options.weight_room = weight_room;
  options.make = make;
  options.kv_tokens = kv_tokens;
  options.kv_type = kv_type_named(kv_type.c_str());
  options.threads = threads;
  options.adaptive = adaptive;
  options.priority = background ? Priority::kBackground : Priority::kNormal;
  options.isa = kernels_named(isa).name;
  const LoadProgress report = to_progress(progress);
  py::gil_scoped_release nogil;
  return std::make_unique<Engine>(file, specs, options, report);
}

std::array<uint8_t, 32> to_key(const py::bytes& bytes) {
  const std::string text = bytes;
  std::array<uint8_t, 32> key;
  if (text.size() != key.size())
    throw py::value_error("key: " + std::to_string(text.size()) + " bytes, expected " + std::to_string(key.size()));
  std::copy(text.begin(), text.end(), key.begin());
  return key;
}

std::shared_ptr<PackedFile> open_packed(const Gguf& file, const py::sequence& ops, const py::object& path,
                                        const py::bytes& key) {
  const auto held = file.contents();
  return std::make_shared<PackedFile>(encode_path(path), cpu_packed_identity(Program(file, to_ops(ops)), to_key(key)));
}

void pack(const Gguf& file, const py::sequence& ops, const py::object& path, const py::bytes& key, int descriptor,
          int threads, bool background, const py::object& progress) {
  const auto held = file.contents();
  const Program program(file, to_ops(ops));
  const PackedFile::Identity identity = cpu_packed_identity(program, to_key(key));
  const Output output(descriptor, encode_path(path));
  const LoadProgress report = to_progress(progress);
  py::gil_scoped_release nogil;
  cpu_pack(program, output, PackedFile::kHeaderBytes, threads, background ? Priority::kBackground : Priority::kNormal,
           report);
  const auto header = PackedFile::header(identity);
  output.write(0, header.size(), header.data());
  output.sync();
  held->check_unchanged();
}

void pack_at(const Gguf& file, const py::sequence& ops, const py::object& path, int descriptor, uint64_t begin,
             int threads, const py::object& progress) {
  const auto held = file.contents();
  const Program program(file, to_ops(ops));
  const Output output(descriptor, encode_path(path));
  const LoadProgress report = to_progress(progress);
  py::gil_scoped_release nogil;
  cpu_pack(program, output, begin, threads, Priority::kNormal, report);
  output.sync();
  held->check_unchanged();
}

// The packed weights that the file has, if it has the program's.
std::shared_ptr<const PackedFile> packed_in(const Gguf& file, const py::sequence& ops) {
  const auto held = file.contents();
  if (held->packed && !(cpu_packed_identity(Program(file, to_ops(ops)), {}) == held->packed->identity()))
    throw FormatError("packed in another layout: export the model again with this version of glmlite");
  return held->packed;
}

// Sums of squares of the columns of some values of a step; of a mixture, of what enters each expert.
class Squares {
 public:
  explicit Squares(const std::vector<int>& values) {
    for (int value : values) sums_[value] = {};
  }
  Watch watch() {
    Watch watch;
    watch.value = [this](int value, const float* rows, int64_t count, int64_t width) {
      const auto found = sums_.find(value);
      if (found != sums_.end()) {
        found->second.assign(static_cast<size_t>(width), 0.0);
        for (int64_t r = 0; r < count; ++r) add(rows + r * width, width, found->second.data());
      }
    };
    watch.expert = [this](int value, const ExpertRows& rows) {
      if (!sums_.count(value)) return;
      Expert& e = experts_[value][rows.expert];
      e = {rows.count, std::vector<double>(static_cast<size_t>(rows.columns)),
           std::vector<double>(static_cast<size_t>(rows.width))};
      for (int64_t i = 0; i < rows.count; ++i) {
        add(rows.x + rows.rows[i] * rows.columns, rows.columns, e.x.data());
        add(rows.inner + i * rows.width, rows.width, e.inner.data());
      }
    };
    return watch;
  }
  py::dict to_python() const {
    py::dict result;
    for (const auto& [value, sum] : sums_) {
      const auto mixture = experts_.find(value);
      if (mixture == experts_.end()) {
        result[py::int_(value)] = array(sum);
        continue;
      }
      py::dict experts;
      for (const auto& [index, e] : mixture->second)
        experts[py::int_(index)] = py::make_tuple(e.count, array(e.x), array(e.inner));
      result[py::int_(value)] = experts;
    }
    return result;
  }

 private:
  struct Expert {
    int64_t count = 0;
    std::vector<double> x, inner;
  };
  static void add(const float* row, int64_t width, double* sum) {
    for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<double>(row[c]) * row[c];
  }
  static py::array_t<double> array(const std::vector<double>& sum) {
    return py::array_t<double>(static_cast<py::ssize_t>(sum.size()), sum.data());
  }

  std::map<int, std::vector<double>> sums_;
  std::map<int, std::map<int32_t, Expert>> experts_;
};

}  // namespace

std::vector<OpSpec> to_ops(const py::sequence& ops) {
  std::vector<OpSpec> specs;
  for (const auto& op : ops) specs.push_back(to_op(op.cast<py::tuple>()));
  return specs;
}

void bind_errors() {
  py::register_local_exception_translator([](std::exception_ptr p) {
    const auto raise_as = [](const char* name, const char* what) {
      PyErr_SetString(py::module_::import("glmlite.errors").attr(name).ptr(), what);
    };
    try {
      if (p) std::rethrow_exception(p);
    } catch (const FormatError& e) { raise_as("FormatError", e.what()); } catch (const Cancelled& e) {
      raise_as("Cancelled", e.what());
    } catch (const std::runtime_error&) {
      // Where Python has no memory for an object, pybind11 throws this, and Python's MemoryError stands already.
      if (!PyErr_Occurred()) throw;
    }
  });
}

void bind_engine(py::module_& m, ExecutorFactory make) {
  m.attr("AXES") = kAxes;
  m.attr("DRAFT") = kDraft;
  m.def(
      "page_bytes",
      [](const Gguf& file, const py::sequence& ops, const std::string& kv_type) {
        const auto held = file.contents();
        return cpu_page_bytes(Program(file, to_ops(ops)), kv_type_named(kv_type.c_str()));
      },
      py::arg("gguf"), py::arg("ops"), py::arg("kv_type") = "f16",
      "Bytes that a page of the KV cache, `Engine.page_tokens` tokens, takes in all layers on the CPU.");
  m.def(
      "weight_bytes",
      [](const Gguf& file, const py::sequence& ops) {
        const auto held = file.contents();
        const PackedBytes bytes = cpu_weight_bytes(Program(file, to_ops(ops)));
        return py::make_tuple(bytes.all, bytes.experts);
      },
      py::arg("gguf"), py::arg("ops"), "Bytes of the weights as the CPU packs them, and how many are experts'.");
  m.def("available_memory", &available_memory,
        "Bytes that this process can still have without swapping, as far as the system tells.");

  m.def(
      "read_speed",
      [](const py::object& path, double seconds) {
        const std::string name = encode_path(path);
        py::gil_scoped_release nogil;
        return read_speed(name, seconds);
      },
      py::arg("path"), py::arg("seconds") = 1.0, "Bytes a second that many reads at once take from the file's disk.");

  py::class_<PackedFile, std::shared_ptr<PackedFile>>(m, "PackedFile", py::module_local(),
                                                      "Weights on disk as the CPU's kernels read them.")
      .def(py::init(&open_packed), py::arg("gguf"), py::arg("ops"), py::arg("path"), py::arg("key"));
  m.def("packed_in", &packed_in, py::arg("gguf"), py::arg("ops"),
        "The packed weights that a file of `glmlite export` has; None for others.");
  m.def(
      "packed_layout",
      [](const Gguf& file, const py::sequence& ops) {
        const auto held = file.contents();
        const PackedFile::Identity identity = cpu_packed_identity(Program(file, to_ops(ops)), {});
        return py::make_tuple(PackedFile::kVersion, identity.layout, identity.bytes);
      },
      py::arg("gguf"), py::arg("ops"), "The version of packing, the layout of a program's weights, and their bytes.");
  m.def("pack_at", &pack_at, py::arg("gguf"), py::arg("ops"), py::arg("path"), py::arg("descriptor"), py::arg("begin"),
        py::kw_only(), py::arg("threads") = 0, py::arg("progress") = py::none(),
        "Writes packed weights into a file that is open for writing, from byte `begin` to its end.");
  m.def("pack", &pack, py::arg("gguf"), py::arg("ops"), py::arg("path"), py::arg("key"), py::arg("descriptor"),
        py::kw_only(), py::arg("threads") = 0, py::arg("background") = false, py::arg("progress") = py::none(),
        "Writes a PackedFile into a file that is open for writing.");

  py::class_<CancelFlag, std::shared_ptr<CancelFlag>>(
      m, "Cancel", py::module_local(), "A flag that any thread may set; seen between ops, and in long ones.")
      .def(py::init<>())
      .def("set", [](CancelFlag& c) { c.set = true; })
      .def_property_readonly("is_set", [](const CancelFlag& c) { return c.set.load(); });

  const py::object sample =
      py::module_::import("collections").attr("namedtuple")("Sample", py::make_tuple("token", "logprob", "top"));
  sample.attr("__module__") = "glmlite._native";
  sample.attr("__doc__") = "One sampled token, with its log probability and the most likely tokens where asked for.";
  m.attr("Sample") = sample;

  const py::object option = py::module_::import("collections")
                                .attr("namedtuple")("SamplingOption", "name least most above_least whole off usual");
  option.attr("__module__") = "glmlite._native";
  option.attr("__doc__") = "A number that says how to sample: its bounds, where it has no effect, what is usual.";
  m.attr("SamplingOption") = option;
  m.def("sampling_options", [option] {
    py::list list;
    for (const SamplingOption& o : sampling_options()) {
      list.append(option(o.name, o.least, o.most, o.above_least, o.whole, o.off, o.usual));
    }
    return list;
  });

  py::class_<Sampler, std::shared_ptr<Sampler>>(m, "Sampler", py::module_local(),
                                                "Sampling parameters and state of one stream of tokens.")
      .def(py::init(&make_sampler), py::kw_only(), py::arg("seed") = 0,
           py::arg("logit_bias") = std::map<int32_t, double>(), py::arg("logprobs") = -1,
           py::arg("stop") = std::vector<int32_t>(), py::arg("draft") = 0)
      .def(
          "accept",
          [](Sampler& s, const py::object& tokens) {
            const auto ids = to_vector<int32_t>(tokens, "accept: tokens must be integers that fit in 32 bits");
            py::gil_scoped_release nogil;  // of a long prompt it takes milliseconds
            s.accept(ids.data(), static_cast<int64_t>(ids.size()));
          },
          py::arg("tokens"))
      .def(
          "take",
          [](Sampler& s, const py::object& tokens) {
            for (const int32_t token : to_vector<int32_t>(tokens, "take: tokens must be integers that fit in 32 bits"))
              s.take(token);
          },
          py::arg("tokens"))
      .def(
          "allow",
          [](Sampler& s, const std::optional<py::array_t<uint32_t, py::array::c_style>>& words) {
            if (words && words->ndim() != 1) throw py::value_error("allow: words must be one-dimensional");
            if (words && words->size() == 0) throw py::value_error("allow: no words, expected one for 32 tokens");
            s.allow(words ? std::vector<uint32_t>(words->data(), words->data() + words->size())
                          : std::vector<uint32_t>());
          },
          py::arg("words"))
      .def(
          "forbid",
          [](Sampler& s, const py::object& tokens) {
            s.forbid(to_vector<int32_t>(tokens, "forbid: tokens must be integers that fit in 32 bits"));
          },
          py::arg("tokens"))
      .def(
          "sample",
          [sample](Sampler& s, const py::array_t<float, py::array::c_style>& logits) {
            if (logits.ndim() != 1 || logits.shape(0) == 0) throw py::value_error("sample: logits must be (vocab,)");
            return to_python(s.sample(logits.data(), logits.shape(0)), sample);
          },
          py::arg("logits"))
      .def("draft", &Sampler::draft, py::arg("most"), py::arg("cost"))
      .def("settle", &Sampler::settle, py::arg("count"), py::arg("right"), py::arg("cost"))
      .def_property_readonly("drafted",
                             [](const Sampler& s) { return py::make_tuple(s.drafted().drafted, s.drafted().right); });

  py::class_<Work>(m, "Work", py::module_local(), "What one sequence does in a call of Engine.run.")
      .def(py::init(&make_work), py::arg("sequence"), py::arg("tokens"), py::arg("positions"), py::kw_only(),
           py::arg("visible") = 0, py::arg("sampler") = nullptr, py::arg("budget") = 1,
           py::arg("next_position") = py::make_tuple(0, 0, 0), py::arg("position_step") = py::make_tuple(1, 1, 1),
           py::arg("input") = py::none(), py::arg("embeddings") = py::none());

  py::class_<Engine>(m, "Engine", py::module_local(), "A program with its packed weights and KV cache.")
      .def(py::init([make](const Gguf& file, const py::sequence& ops, int64_t kv_tokens, const std::string& kv_type,
                           int threads, bool adaptive, bool background, const std::string& isa,
                           const py::object& progress, int device, int gpu_layers, std::shared_ptr<PackedFile> packed,
                           int64_t weight_room) {
             return make_engine(file, ops, kv_tokens, kv_type, threads, adaptive, background, isa, progress, device,
                                gpu_layers, std::move(packed), weight_room, make);
           }),
           py::arg("gguf"), py::arg("ops"), py::kw_only(), py::arg("kv_tokens"), py::arg("kv_type") = "f16",
           py::arg("threads") = 0, py::arg("adaptive") = false, py::arg("background") = false, py::arg("isa") = "",
           py::arg("progress") = py::none(), py::arg("device") = -1, py::arg("gpu_layers") = -1,
           py::arg("packed") = py::none(), py::arg("weight_room") = -1)
      .def_property("threads", &Engine::threads, &Engine::set_threads)
      .def_property_readonly("threads_now", &Engine::threads_now)
      .def_property_readonly("isa", [](const Engine& e) { return e.info().isa; })
      .def_property_readonly("vocab", [](const Engine& e) { return e.info().vocab; })
      .def_property_readonly("prefix", [](const Engine& e) { return e.info().prefix; })
      .def_property_readonly("kv_tokens", [](const Engine& e) { return e.info().kv_tokens; })
      .def_property_readonly("weight_bytes", [](const Engine& e) { return e.info().weight_bytes; })
      .def_property_readonly("kv_bytes", [](const Engine& e) { return e.info().kv_bytes; })
      .def("scratch_bytes", &Engine::scratch_bytes, NoGil(), "Bytes of activations and scratch held now.")
      .def("release", &Engine::release, NoGil(), "Gives back what scratch_bytes tells; the next step takes it anew.")
      .def("progress", &Engine::progress, "How much of the step in progress is done, 0 to 1.")
      .def("kv_free", &Engine::kv_free, NoGil())
      .def("new_sequence", &Engine::new_sequence, NoGil())
      .def("fork", &Engine::fork, py::arg("sequence"), py::arg("length"), NoGil())
      .def("truncate", &Engine::truncate, py::arg("sequence"), py::arg("length"), NoGil())
      .def("free", &Engine::free, py::arg("sequence"), NoGil())
      .def("length", &Engine::length, py::arg("sequence"), NoGil())
      .def(
          "step",
          [](Engine& e, const py::sequence& works, const std::vector<int32_t>& rows, const CancelFlag* cancel) {
            const auto w = to_works(works);
            std::vector<float> logits;
            {
              py::gil_scoped_release nogil;
              logits = e.step(w, rows, cancel);
            }
            return to_rows(logits, rows.size(), e.info().vocab);
          },
          py::arg("works"), py::arg("rows"), py::arg("cancel") = nullptr)
      .def(
          "trace",
          [](Engine& e, const py::sequence& works, const std::vector<int32_t>& rows) {
            const auto w = to_works(works);
            struct Seen {
              std::vector<float> values;
              int64_t rows, width;
            };
            std::map<int, Seen> seen;
            Watch watch;
            watch.value = [&](int value, const float* data, int64_t count, int64_t width) {
              seen[value] = {std::vector<float>(data, data + count * width), count, width};
            };
            {
              py::gil_scoped_release nogil;
              e.step(w, rows, nullptr, &watch);
            }
            py::dict result;
            for (const auto& [value, s] : seen)
              result[py::int_(value)] = to_rows(s.values, static_cast<size_t>(s.rows), s.width);
            return result;
          },
          py::arg("works"), py::arg("rows"))
      .def(
          "squares",
          [](Engine& e, const py::sequence& works, const std::vector<int32_t>& rows, const std::vector<int>& values,
             const CancelFlag* cancel) {
            const auto w = to_works(works);
            Squares sums(values);
            const Watch watch = sums.watch();
            {
              py::gil_scoped_release nogil;
              e.step(w, rows, cancel, &watch);
            }
            return sums.to_python();
          },
          py::arg("works"), py::arg("rows"), py::arg("values"), py::arg("cancel") = nullptr)
      .def(
          "run",
          [sample](Engine& e, const py::sequence& works, double max_ms, const CancelFlag* cancel) {
            const auto w = to_works(works);
            std::vector<std::vector<Sample>> samples;
            {
              py::gil_scoped_release nogil;
              samples = e.run(w, max_ms, cancel);
            }
            py::list result;
            for (const auto& of_work : samples) {
              py::list tokens;
              for (const Sample& s : of_work) tokens.append(to_python(s, sample));
              result.append(tokens);
            }
            return result;
          },
          py::arg("works"), py::kw_only(), py::arg("max_ms") = 0.0, py::arg("cancel") = nullptr)
      .def("close", &Engine::close, NoGil())
      .attr("page_tokens") = kPageTokens;
}

}  // namespace glmlite
