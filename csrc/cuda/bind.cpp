// The Python module `glmlite._cuda`: files and engines as in `_native`, with a GPU to place them on.
#include "../bind.h"

#include <pybind11/stl.h>

#include "bind.h"
#include "device.h"
#include "executor.h"
#include "measure.h"

namespace py = pybind11;

namespace glmlite::cuda_host {
void bind_machine(py::module_& m);  // of the emulator, tests/native/cuda_host
}

namespace {

using namespace glmlite;

struct Request {
  std::shared_ptr<const Gguf::Contents> file;  // that the program's tensors are in
  Program program;
  int64_t pages;
  KvType kv_type;
};

Request to_request(const Gguf& file, const py::sequence& ops, int64_t kv_tokens, const std::string& kv_type) {
  auto contents = file.contents();
  Program program(file, to_ops(ops));
  const int64_t pages = CachePages(program, kv_tokens).total;
  return {std::move(contents), std::move(program), pages, kv_type_named(kv_type.c_str())};
}

py::dict to_dict(const cuda::DeviceInfo& d) {
  py::dict result;
  result["index"] = d.index;
  result["name"] = d.name;
  result["capability"] = py::make_tuple(d.major, d.minor);
  result["total"] = d.total;
  return result;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("__version__") = GLMLITE_VERSION;
  bind_errors();
  bind_gguf(m);
  bind_engine(m, cuda::make_executor);
  cuda::bind_kernels(m);
  m.def(
      "devices",
      [] {
        py::list result;
        for (const cuda::DeviceInfo& d : cuda::devices()) result.append(to_dict(d));
        return result;
      },
      "The GPUs there are: index, name, capability, total bytes of memory. Raises RuntimeError that says why there are "
      "none.");
  m.def(
      "free_memory",
      [](int device) {
        cuda::use_device(device);
        return cuda::free_memory();
      },
      py::arg("device"), py::call_guard<py::gil_scoped_release>(), "Bytes of a GPU's memory that nobody holds.");
  m.def(
      "memory_needed",
      [](const Gguf& file, const py::sequence& ops, int64_t kv_tokens, const std::string& kv_type, int gpu_layers) {
        const Request r = to_request(file, ops, kv_tokens, kv_type);
        const cuda::Need need = cuda::memory_needed(r.program, r.pages, r.kv_type, gpu_layers);
        py::dict result;
        result["layers"] = need.layers;
        result["gpu_layers"] = need.gpu_layers;
        result["weights"] = need.weights;
        result["kv"] = need.kv;
        result["page"] = need.page;
        result["scratch"] = need.scratch;
        result["reserve"] = need.reserve;
        result["total"] = need.total();
        return result;
      },
      py::arg("gguf"), py::arg("ops"), py::kw_only(), py::arg("kv_tokens"), py::arg("kv_type") = "f16",
      py::arg("gpu_layers") = -1, "Bytes of GPU memory that the last `gpu_layers` layers take, -1: all. Needs no GPU.");
  m.def(
      "layers_that_fit",
      [](const Gguf& file, const py::sequence& ops, size_t free, int64_t kv_tokens, const std::string& kv_type) {
        const Request r = to_request(file, ops, kv_tokens, kv_type);
        return cuda::layers_that_fit(r.program, r.pages, r.kv_type, free);
      },
      py::arg("gguf"), py::arg("ops"), py::arg("free"), py::kw_only(), py::arg("kv_tokens"), py::arg("kv_type") = "f16",
      "The most layers that take at most `free` bytes of GPU memory. Needs no GPU.");
  m.def(
      "measure_step",
      [](const Gguf& file, const py::sequence& ops, int64_t context, const std::string& kv_type, int device) {
        Request r = to_request(file, ops, context, kv_type);
        ExecutorOptions options;
        options.pages = r.pages;
        options.kv_type = r.kv_type;
        options.device = device;
        cuda::StepTimes times;
        {
          py::gil_scoped_release nogil;
          times = cuda::measure_step(std::move(r.program), options, context);
        }
        py::dict result;
        result["ops"] = times.ops;
        result["ahead"] = times.ahead;
        result["in_turn"] = times.in_turn;
        return result;
      },
      py::arg("gguf"), py::arg("ops"), py::kw_only(), py::arg("context"), py::arg("kv_type") = "f16",
      py::arg("device") = 0,
      "Loads a model on a GPU to time a step of one token that sees `context` entries, in microseconds: `ops`, (name, "
      "time) of each op on its own; `ahead`, all of the step as it runs; `in_turn`, with each kernel launched when the "
      "one before has ended.");
#ifdef GLMLITE_CUDA_EMULATED
  cuda_host::bind_machine(m);
#else
  m.def("machine_bandwidth", &cuda::measure_bandwidth, py::arg("device"), py::call_guard<py::gil_scoped_release>(),
        "GB/s of a copy within the GPU's memory, bytes read and bytes written both counted, measured now.");
  m.def("machine_bf16_rate", &cuda::measure_bf16, py::arg("device"), py::call_guard<py::gil_scoped_release>(),
        "GFLOPS of bf16 matrix instructions (mma.sync) on registers, two operations per multiply-add, measured now; 0 "
        "where the GPU has none.");
#endif
}
