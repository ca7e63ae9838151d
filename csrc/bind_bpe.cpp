// The Python class Bpe, and for tests those of csrc/text.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "bind_check.h"
#include "bpe.h"
#include "gguf.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/words.h"

namespace py = pybind11;

namespace glmlite {

namespace {

// Bytes whose ids are found with the GIL held: in less time than it takes to hand it over and back.
constexpr size_t kShort = 1 << 16;

// Through a copy: Python would keep the UTF-8 of each string beside it.
std::string utf8(py::handle text) {
  PyObject* bytes = PyUnicode_AsUTF8String(text.ptr());
  if (bytes == nullptr) throw py::error_already_set();
  return std::string(py::reinterpret_steal<py::bytes>(bytes));
}

Strings to_strings(const py::list& list, Check& check) {
  Strings strings;
  strings.ends.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    check.with_gil();
    py::object item = list[i];
    if (strings.bytes.size() > UINT32_MAX / 2) throw std::invalid_argument("Bpe: more than 2 GB of strings");
    if (PyUnicode_Check(item.ptr()) && PyUnicode_IS_ASCII(item.ptr())) {
      const auto size = static_cast<size_t>(PyUnicode_GET_LENGTH(item.ptr()));
      strings.add({reinterpret_cast<const char*>(PyUnicode_1BYTE_DATA(item.ptr())), size});
    } else {
      strings.add(utf8(item));
    }
  }
  return strings;
}

std::unique_ptr<Bpe> make_bpe(const py::list& tokens, const py::array_t<uint8_t, py::array::c_style>& kinds,
                              const py::list& merges, bool whole_words, const py::object& ask) {
  if (kinds.ndim() != 1 || static_cast<size_t>(kinds.size()) != tokens.size()) {
    throw std::invalid_argument("Bpe: kinds, expected one for each token");
  }
  std::vector<Bpe::Kind> of(tokens.size());
  for (size_t i = 0; i < of.size(); ++i) {
    const uint8_t kind = kinds.data()[i];
    if (kind > static_cast<uint8_t>(Bpe::Kind::kNothing)) throw std::invalid_argument("Bpe: a kind above 2");
    of[i] = static_cast<Bpe::Kind>(kind);
  }
  Check check(ask);
  Strings words = to_strings(tokens, check), pairs = to_strings(merges, check);
  py::gil_scoped_release release;
  return std::make_unique<Bpe>(std::move(words), std::move(of), pairs, whole_words, [&] { check.without_gil(); });
}

py::array_t<int32_t> encode(const Bpe& bpe, const py::str& text, const py::array_t<int32_t, py::array::c_style>& ends) {
  const std::string bytes = utf8(text);
  const int32_t* end = ends.data();
  const auto words = static_cast<size_t>(ends.size());
  std::vector<int32_t> ids;
  {
    std::optional<py::gil_scoped_release> release;
    if (bytes.size() > kShort) release.emplace();
    size_t at = 0;  // in bytes
    int32_t characters = 0;
    for (size_t i = 0; i < words; ++i) {
      const size_t begin = at;
      for (; characters < end[i] && at < bytes.size(); ++characters) {
        do ++at;
        while (at < bytes.size() && (bytes[at] & 0xC0) == 0x80);
      }
      if (characters != end[i]) break;
      bpe.encode(std::string_view(bytes).substr(begin, at - begin), ids);
    }
    if (at != bytes.size() || (words > 0 && characters != end[words - 1])) {
      throw std::invalid_argument("Bpe: words that do not follow one another to the end of the text");
    }
  }
  // Not numpy's copy, which gives up the GIL for a moment: see Check::with_gil.
  py::array_t<int32_t> array(static_cast<py::ssize_t>(ids.size()));
  if (!ids.empty()) std::memcpy(array.mutable_data(), ids.data(), ids.size() * sizeof(int32_t));
  return array;
}

py::list pieces(const Bpe& bpe) {
  py::list list(bpe.size());
  const py::none nobody;
  Check check(nobody);
  for (size_t i = 0; i < bpe.size(); ++i) {
    check.with_gil();
    list[i] = py::bytes(bpe.piece(i));
  }
  return list;
}

py::array_t<int32_t> to_array(const std::vector<int32_t>& ids) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

py::array_t<int32_t> encode_bytes(const Tokenizer& tokenizer, const py::bytes& text, bool special) {
  std::vector<int32_t> ids;
  {
    const auto bytes = static_cast<std::string_view>(text);
    py::gil_scoped_release release;
    tokenizer.encode(bytes, special, ids);
  }
  return to_array(ids);
}

// Where each word ends, in bytes.
py::array_t<int32_t> cut(const Words& words, const py::bytes& text) {
  const std::string whole = replaced(static_cast<std::string_view>(text));
  std::vector<int32_t> ends;
  words.cut(whole, [&](std::string_view word) {
    ends.push_back(static_cast<int32_t>(word.data() + word.size() - whole.data()));
  });
  return to_array(ends);
}

py::bytes push(TextStream& stream, int32_t id) {
  std::string text;
  stream.push(id, text);
  return py::bytes(text);
}

py::bytes finish(TextStream& stream) {
  std::string text;
  stream.finish(text);
  return py::bytes(text);
}

}  // namespace

void bind_bpe(py::module_& m) {
  py::class_<Bpe>(m, "Bpe")
      .def(py::init(&make_bpe), py::arg("tokens"), py::arg("kinds"), py::arg("merges"), py::kw_only(),
           py::arg("whole_words"), py::arg("check") = py::none())
      .def("encode", &encode, py::arg("text"), py::arg("ends"))
      .def("pieces", &pieces);

  py::class_<Tokenizer>(m, "TextTokenizer")
      .def(py::init(
               [](const std::string& path) { return std::make_unique<Tokenizer>(Gguf(path).contents()->metadata); }),
           py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("encode", &encode_bytes, py::arg("text"), py::kw_only(), py::arg("special"))
      .def(
          "begin", [](const Tokenizer& t, const std::vector<int32_t>& ids) { return t.begin(ids); }, py::arg("ids"))
      .def(
          "stream", [](const Tokenizer& t, bool skip) { return TextStream(t, skip); }, py::kw_only(),
          py::arg("skip_special"), py::keep_alive<0, 1>())
      .def(
          "piece", [](const Tokenizer& t, int32_t id) { return py::bytes(std::string(t.piece(id))); }, py::arg("id"))
      .def("is_special", &Tokenizer::is_special, py::arg("id"))
      .def("find", &Tokenizer::find, py::arg("text"))
      .def_property_readonly("size", &Tokenizer::size)
      .def_property_readonly("ends", &Tokenizer::ends)
      .def_property_readonly("prefix", &Tokenizer::prefix);
  py::class_<Words>(m, "Words")
      .def(py::init<const std::vector<uint32_t>&, const std::vector<int32_t>&>(), py::arg("classes"),
           py::arg("automata"))
      .def("cut", &cut, py::arg("text"));
  py::class_<TextStream>(m, "TextStream").def("push", &push, py::arg("id")).def("finish", &finish);
}

}  // namespace glmlite
