// The Python class Gguf. Metadata and tensor list become Python objects when first asked for.
#include <pybind11/numpy.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "dequantize.h"
#include "errors.h"
#include "gguf.h"

namespace py = pybind11;

namespace glmlite {

namespace {

using Contents = Gguf::Contents;

struct TensorInfo {
  std::string name, type;
  uint32_t type_id;
  py::tuple shape;
  uint64_t nbytes;
  bool supported;
  py::object path;
  uint64_t offset;
};

// Paths cross the seam as os.fsencode and os.fsdecode have them: any bytes on Linux, UTF-8 on Windows.
py::object decode_path(const std::string& path) {
  PyObject* text = PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
  if (text == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(text);
}

std::string encode_path(const py::object& path) {
  PyObject* bytes = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) throw py::error_already_set();
  return std::string(py::reinterpret_steal<py::bytes>(bytes));
}

std::unique_ptr<Gguf> open_gguf(const py::object& path) {
  std::string encoded = encode_path(path);
  py::gil_scoped_release release;
  return std::make_unique<Gguf>(encoded);
}

py::object to_text(const char* text, size_t size) {
  PyObject* decoded = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(size), nullptr);
  if (decoded != nullptr) return py::reinterpret_steal<py::object>(decoded);
  if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw py::error_already_set();
  PyErr_Clear();
  return py::bytes(text, size);
}

template <class T>
py::object to_number(const Value& value) {
  if (value.is_array) {
    py::array_t<T> numbers(static_cast<py::ssize_t>(value.bytes.size() / sizeof(T)));
    if (!value.bytes.empty()) std::memcpy(numbers.mutable_data(), value.bytes.data(), value.bytes.size());
    return std::move(numbers);
  }
  T number;
  std::memcpy(&number, value.bytes.data(), sizeof number);
  return py::cast(number);
}

py::object to_python(const Value& value) {
  switch (value.type) {
    case ValueType::kUint8:
      return to_number<uint8_t>(value);
    case ValueType::kInt8:
      return to_number<int8_t>(value);
    case ValueType::kUint16:
      return to_number<uint16_t>(value);
    case ValueType::kInt16:
      return to_number<int16_t>(value);
    case ValueType::kUint32:
      return to_number<uint32_t>(value);
    case ValueType::kInt32:
      return to_number<int32_t>(value);
    case ValueType::kFloat32:
      return to_number<float>(value);
    case ValueType::kBool:
      return to_number<bool>(value);
    case ValueType::kUint64:
      return to_number<uint64_t>(value);
    case ValueType::kInt64:
      return to_number<int64_t>(value);
    case ValueType::kFloat64:
      return to_number<double>(value);
    case ValueType::kString: {
      if (!value.is_array) return to_text(value.bytes.data(), value.bytes.size());
      py::list strings(value.ends.size());
      uint64_t begin = 0;
      for (size_t i = 0; i < value.ends.size(); ++i) {
        strings[i] = to_text(value.bytes.data() + begin, static_cast<size_t>(value.ends[i] - begin));
        begin = value.ends[i];
      }
      return std::move(strings);
    }
    case ValueType::kArray: {
      py::list items(value.items.size());
      for (size_t i = 0; i < value.items.size(); ++i) items[i] = to_python(value.items[i]);
      return std::move(items);
    }
  }
  throw std::logic_error("parse_gguf let an unknown value type through");
}

py::dict make_metadata(const Contents& contents) {
  py::dict metadata;
  for (const auto& entry : contents.metadata) metadata[py::str(entry.first)] = to_python(entry.second);
  return metadata;
}

py::list make_paths(const Contents& contents) {
  py::list paths;
  for (const auto& part : contents.parts) paths.append(decode_path(part->path()));
  return paths;
}

py::dict make_tensors(const Contents& contents) {
  py::dict tensors;
  py::list paths = make_paths(contents);
  for (const Tensor& tensor : contents.tensors) {
    const FormatInfo* info = gguf_type_info(tensor.type);
    py::tuple shape(tensor.shape.size());
    for (size_t i = 0; i < tensor.shape.size(); ++i) shape[i] = py::int_(tensor.shape[i]);
    tensors[py::str(tensor.name)] =
        TensorInfo{tensor.name,        info != nullptr ? info->name : "type " + std::to_string(tensor.type),
                   tensor.type,        std::move(shape),
                   tensor.bytes,       tensor.known,
                   paths[tensor.part], tensor.offset};
  }
  return tensors;
}

// self's attribute `name`, made by `make` the first time. Raises ValueError once the file is closed.
template <class Make>
py::object once(const py::object& self, const char* name, Make make) {
  std::shared_ptr<const Contents> contents = self.cast<const Gguf&>().contents();
  py::dict made = self.attr("__dict__");
  if (!made.contains(name)) made[name] = make(*contents);
  return made[name];
}

const Tensor& find(const Gguf& gguf, const std::string& name) {
  const Tensor* tensor = gguf.find(name);
  if (tensor == nullptr) throw std::invalid_argument(gguf.where() + ": there is no tensor '" + printable(name) + "'");
  return *tensor;
}

py::array data(const Gguf& gguf, const std::string& name) {
  auto contents = std::make_unique<std::shared_ptr<const Contents>>(gguf.contents());
  const Tensor& tensor = find(gguf, name);
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(tensor.bytes)};
  const FormatInfo* info = gguf_type_info(tensor.type);
  if (info != nullptr && tensor.shape.size() > 1) {
    py::ssize_t row_bytes = static_cast<py::ssize_t>(tensor.shape.back() / info->block_values * info->block_bytes);
    shape = {static_cast<py::ssize_t>(tensor.bytes) / row_bytes, row_bytes};
  }
  py::capsule owner(contents.get(), [](void* held) { delete static_cast<std::shared_ptr<const Contents>*>(held); });
  contents.release();
  py::array array(py::dtype::of<uint8_t>(), shape, tensor.data, owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::array_t<float> dequantize(const Gguf& gguf, const std::string& name) {
  std::shared_ptr<const Contents> contents = gguf.contents();  // another thread may close the file meanwhile
  const Tensor& tensor = find(gguf, name);
  if (!tensor.known) {
    const FormatInfo* info = gguf_type_info(tensor.type);
    throw FormatError(gguf.where() + ": tensor '" + printable(name) + "' is of " +
                      (info != nullptr ? info->name : "type " + std::to_string(tensor.type)) +
                      ", which there are no kernels for");
  }
  py::array_t<float> array(std::vector<py::ssize_t>(tensor.shape.begin(), tensor.shape.end()));
  float* y = array.mutable_data();
  const FormatInfo& info = format_info(tensor.format);
  int64_t k = tensor.shape.back();
  uint64_t row_bytes = static_cast<uint64_t>(k / info.block_values) * static_cast<uint64_t>(info.block_bytes);
  py::gil_scoped_release release;
  for (uint64_t at = 0; at < tensor.bytes; at += row_bytes, y += k) {
    dequantize_row(tensor.format, tensor.data + at, k, y);
  }
  return array;
}

}  // namespace

void bind_gguf(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const FileError& e) {
      if (e.error == ENOMEM) {  // no address space to map it into
        PyErr_SetString(PyExc_MemoryError, e.what());
        return;
      }
      // OSError picks the subclass by the errno.
      py::object error = py::handle(PyExc_OSError)(e.error, e.reason, decode_path(e.path));
      PyErr_SetObject(py::type::handle_of(error).ptr(), error.ptr());
    }
  });

  py::class_<TensorInfo>(m, "TensorInfo", py::module_local(), "What the file says of a tensor.")
      .def_readonly("name", &TensorInfo::name)
      .def_readonly("type", &TensorInfo::type)
      .def_readonly("type_id", &TensorInfo::type_id)
      .def_readonly("shape", &TensorInfo::shape)
      .def_readonly("nbytes", &TensorInfo::nbytes)
      .def_readonly("supported", &TensorInfo::supported)
      .def_readonly("path", &TensorInfo::path)
      .def_readonly("offset", &TensorInfo::offset);

  py::class_<Gguf, std::shared_ptr<Gguf>>(m, "Gguf", py::module_local(), py::dynamic_attr(),
                                          "A GGUF file, mapped: metadata and tensors.")
      .def(py::init(&open_gguf), py::arg("path"))
      .def_property_readonly("version", [](const Gguf& gguf) { return gguf.contents()->version; })
      .def_property_readonly("paths", [](const Gguf& gguf) { return make_paths(*gguf.contents()); })
      .def_property_readonly("nbytes", [](const Gguf& gguf) { return gguf.contents()->bytes(); })
      .def_property_readonly("metadata", [](const py::object& self) { return once(self, "_metadata", make_metadata); })
      .def_property_readonly("tensors", [](const py::object& self) { return once(self, "_tensors", make_tensors); })
      .def("data", &data, py::arg("name"),
           "The tensor's bytes, read-only, not copied: (rows, bytes per row) or (bytes,).")
      .def("dequantize", &dequantize, py::arg("name"), "The tensor as f32 in its shape.")
      .def("close", &Gguf::close, py::call_guard<py::gil_scoped_release>(),
           "Unmaps; later use raises ValueError. Arrays from `data` keep the mapping alive.");
}

}  // namespace glmlite
