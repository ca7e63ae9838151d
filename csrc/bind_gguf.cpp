// The Python class Gguf. Metadata and tensor list become Python objects when first asked for.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "bind_check.h"
#include "dequantize.h"
#include "errors.h"
#include "gguf.h"

namespace py = pybind11;

namespace glmlite {

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

namespace {

using Contents = Gguf::Contents;

constexpr int64_t kPieceBytes = 2 << 20;  // of a file, made f32 at a time

struct TensorInfo {
  std::string name, type;
  uint32_t type_id;
  py::tuple shape;
  uint64_t nbytes;
  bool supported;
  py::object path;
  uint64_t offset;
};

std::unique_ptr<Gguf> open_gguf(const py::object& path, const py::object& check) {
  std::string encoded = encode_path(path);
  Check asked(check);
  try {
    py::gil_scoped_release release;
    return std::make_unique<Gguf>(encoded, [&] { asked.without_gil(); });
  } catch (const NotGguf& error) {
    const py::object kind = py::module_::import("glmlite.files").attr("not_gguf")(decode_path(error.path));
    if (kind.is_none()) throw;
    throw FormatError(error.what() + (": it is " + kind.cast<std::string>()));
  }
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
  py::object object = py::cast(number);
  if (!object) throw py::error_already_set();
  return object;
}

py::object to_python(const Value& value, Check& check) {
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
      py::list strings;  // grows: other threads run meanwhile, and may come upon it
      uint64_t begin = 0;
      for (const uint64_t end : value.ends) {
        strings.append(to_text(value.bytes.data() + begin, static_cast<size_t>(end - begin)));
        begin = end;
        check.with_gil();
      }
      return std::move(strings);
    }
    case ValueType::kArray: {
      py::list items;
      for (const Value& item : value.items) {
        items.append(to_python(item, check));
        check.with_gil();
      }
      return std::move(items);
    }
  }
  throw std::logic_error("parse_gguf let an unknown value type through");
}

py::dict make_metadata(const Contents& contents, Check& check) {
  py::dict metadata;
  for (const auto& entry : contents.metadata) {
    metadata[py::str(entry.first)] = to_python(entry.second, check);
    check.with_gil();
  }
  return metadata;
}

py::list make_paths(const Contents& contents) {
  py::list paths;
  for (const auto& part : contents.parts) paths.append(decode_path(part->path()));
  return paths;
}

py::dict make_tensors(const Contents& contents, Check& check) {
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
    check.with_gil();
  }
  return tensors;
}

// self's attribute `name`, made by `make` the first time. Raises ValueError once the file is closed.
template <class Make>
py::object once(const py::object& self, const char* name, const py::object& check, Make make) {
  std::shared_ptr<const Contents> contents = self.cast<const Gguf&>().contents();
  py::dict made = self.attr("__dict__");
  if (made.contains(name)) return made[name];
  Check asked(check);
  return made.attr("setdefault")(name, make(*contents, asked));  // another thread may have made it meanwhile
}

const Tensor& find(const Gguf& gguf, const std::string& name) {
  const Tensor* tensor = gguf.find(name);
  if (tensor == nullptr) throw std::invalid_argument(gguf.where() + ": there is no tensor '" + printable(name) + "'");
  return *tensor;
}

// The part [begin, end) of `count` that a caller asks for; without an end all from `begin` on.
std::pair<int64_t, int64_t> range(const std::string& where, int64_t begin, std::optional<int64_t> end, int64_t count) {
  const int64_t last = end.value_or(count);
  if (begin < 0 || begin > last || last > count)
    throw std::invalid_argument(where + ": " + std::to_string(begin) + " to " + std::to_string(last) +
                                ", expected a part of 0 to " + std::to_string(count));
  return {begin, last};
}

py::array_t<uint8_t> data(const Gguf& gguf, const std::string& name, int64_t begin, std::optional<int64_t> end) {
  const std::shared_ptr<const Contents> contents = gguf.contents();  // another thread may close the file meanwhile
  const Tensor& tensor = find(gguf, name);
  int64_t row_bytes = 1;
  const FormatInfo* info = gguf_type_info(tensor.type);
  const bool rows = info != nullptr && tensor.shape.size() > 1;
  if (rows) row_bytes = tensor.shape.back() / info->block_values * info->block_bytes;
  const auto [first, last] = range(name, begin, end, static_cast<int64_t>(tensor.bytes) / row_bytes);
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(last - first)};
  if (rows) shape.push_back(static_cast<py::ssize_t>(row_bytes));
  py::array_t<uint8_t> array(shape);
  uint8_t* to = array.mutable_data();
  py::gil_scoped_release release;
  tensor.read(static_cast<uint64_t>(first * row_bytes), static_cast<uint64_t>((last - first) * row_bytes), to);
  return array;
}

py::array_t<float> dequantize(const Gguf& gguf, const std::string& name, int64_t begin, std::optional<int64_t> end) {
  const std::shared_ptr<const Contents> contents = gguf.contents();
  const Tensor& tensor = find(gguf, name);
  if (!tensor.known) {
    const FormatInfo* info = gguf_type_info(tensor.type);
    throw FormatError(gguf.where() + ": tensor '" + printable(name) + "' is of " +
                      (info != nullptr ? info->name : "type " + std::to_string(tensor.type)) +
                      ", which there are no kernels for");
  }
  const FormatInfo& info = format_info(tensor.format);
  const int64_t block = info.block_values, bytes = info.block_bytes;
  std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  const auto [first, last] = range(name, begin, end, tensor.shape[0]);
  int64_t each = 1;  // values of one of the first axis
  for (size_t i = 1; i < tensor.shape.size(); ++i) each *= tensor.shape[i];
  if (first * each % block != 0 || last * each % block != 0)
    throw std::invalid_argument(name + ": " + std::to_string(first) + " to " + std::to_string(last) +
                                ", expected multiples of " + std::to_string(block) + ", the values of a block");
  shape[0] = static_cast<py::ssize_t>(last - first);
  py::array_t<float> array(shape);
  float* y = array.mutable_data();
  int64_t at = first * each / block;
  const int64_t stop = last * each / block, most = std::min(kPieceBytes / bytes, stop - at);
  py::gil_scoped_release release;
  std::vector<uint8_t> piece(static_cast<size_t>(most * bytes));
  for (int64_t count; at < stop; at += count, y += count * block) {
    count = std::min(most, stop - at);
    tensor.read(static_cast<uint64_t>(at * bytes), static_cast<uint64_t>(count * bytes), piece.data());
    dequantize_row(tensor.format, piece.data(), count * block, y);
  }
  return array;
}

}  // namespace

void bind_gguf(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const FileError& e) {
      if (e.error == ENOMEM) {
        PyErr_SetString(PyExc_MemoryError, e.what());
        return;
      }
      // OSError picks the subclass by the errno.
      py::object error = py::handle(PyExc_OSError)(e.error, e.reason, decode_path(e.path));
      PyErr_SetObject(py::type::handle_of(error).ptr(), error.ptr());
    }
  });

  const py::object storage =
      py::module_::import("collections").attr("namedtuple")("Storage", "name id values nbytes floats");
  storage.attr("__module__") = "glmlite._native";
  storage.attr("__doc__") =
      "A storage format: GGUF's name and number of it, the values and bytes of a block, and where its floats stand.";
  m.attr("Storage") = storage;
  m.def("formats", [storage] {
    py::list list;
    for (const FormatInfo& f : gguf_types()) {
      py::list floats;
      for (const int at : {f.d, f.min})
        if (at != kNoFloat) floats.append(at);
      list.append(storage(f.name, f.gguf_type, f.block_values, f.block_bytes, py::tuple(floats)));
    }
    return list;
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
                                          "A GGUF file: metadata and tensors.")
      .def(py::init(&open_gguf), py::arg("path"), py::arg("check") = py::none())
      .def_property_readonly("version", [](const Gguf& gguf) { return gguf.contents()->version; })
      .def_property_readonly("paths", [](const Gguf& gguf) { return make_paths(*gguf.contents()); })
      .def_property_readonly("nbytes", [](const Gguf& gguf) { return gguf.contents()->bytes(); })
      .def_property_readonly("metadata",
                             [](const py::object& self) { return once(self, "_metadata", py::none(), make_metadata); })
      .def(
          "read_metadata",
          [](const py::object& self, const py::object& check) { return once(self, "_metadata", check, make_metadata); },
          py::arg("check") = py::none(), "`metadata`, with `check` asked while it is made.")
      .def_property_readonly("tensors",
                             [](const py::object& self) { return once(self, "_tensors", py::none(), make_tensors); })
      .def("data", &data, py::arg("name"), py::arg("begin") = 0, py::arg("end") = py::none(),
           "The tensor's bytes, read now: (rows, bytes per row) or (bytes,), of which those from begin to end.")
      .def("dequantize", &dequantize, py::arg("name"), py::arg("begin") = 0, py::arg("end") = py::none(),
           "The tensor as f32 in its shape, of whose first axis the part from begin to end.")
      .def("close", &Gguf::close, py::call_guard<py::gil_scoped_release>(),
           "Closes the file; later use raises ValueError.");
}

}  // namespace glmlite
