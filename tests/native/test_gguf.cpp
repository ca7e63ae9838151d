// The GGUF reader against files made by hand: what it reads, and that no bytes make it crash.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>

#include "check.h"
#include "errors.h"
#include "gguf.h"
#include "gguf_bytes.h"

using namespace glmlite;

namespace {

// Each byte of the header is read once, in order, and none that the file does not have.
Header parse(const std::string& file) {
  uint64_t at = 0;
  const auto read = [&](uint64_t offset, uint64_t bytes, void* to) {
    CHECK(offset == at && bytes > 0 && bytes <= kHeaderPiece && bytes <= file.size() - offset);
    std::memcpy(to, file.data() + offset, static_cast<size_t>(bytes));
    at += bytes;
  };
  Header header = parse_gguf(read, file.size(), "m.gguf");
  for (const Tensor& tensor : header.tensors)
    CHECK(tensor.offset <= file.size() && tensor.bytes <= file.size() - tensor.offset && tensor.bytes > 0);
  return header;
}

std::string bytes_of(const Tensor& tensor) {
  std::string bytes(static_cast<size_t>(tensor.bytes), '\0');
  tensor.read(0, tensor.bytes, &bytes[0]);
  return bytes;
}

// All kinds of values, tensors of three types, one of them unknown.
std::string sample() {
  Builder b;
  b.values = {
      value("u8", ValueType::kUint8, raw(uint8_t{200})),
      value("flag", ValueType::kBool, raw(uint8_t{1})),
      value("f", ValueType::kFloat32, raw(1.5f)),
      value("s", ValueType::kString, text("\xE4\xBD\xA0\xFF")),
      value("numbers", ValueType::kArray,
            array(ValueType::kInt32, 3, raw(int32_t{-1}) + raw(int32_t{2}) + raw(int32_t{3}))),
      value("words", ValueType::kArray, array(ValueType::kString, 3, text("ab") + text("") + text("c"))),
      value("nested", ValueType::kArray,
            array(ValueType::kArray, 2, array(ValueType::kUint8, 1, "x") + array(ValueType::kString, 1, text("y")))),
      value("general.alignment", ValueType::kUint32, raw(uint32_t{8})),
  };
  b.tensors = {tensor("q", {64, 2}, 2, 0), tensor("f", {3}, 0, 72), tensor("odd", {5}, 4242, 88)};
  b.data = std::string(95, '\7');
  b.alignment = 8;
  return b.bytes();
}

std::string one_tensor(const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset, size_t data_bytes) {
  Builder b;
  b.tensors = {tensor("t", dims, type, offset)};
  b.data = std::string(data_bytes, '\0');
  return b.bytes();
}

std::string one_value(const std::string& bytes) {
  Builder b;
  b.values = {bytes};
  return b.bytes();
}

std::string part(uint16_t no, uint16_t count, const std::string& name, int32_t total) {
  Builder b;
  b.values = {value("split.no", ValueType::kUint16, raw(no)), value("split.count", ValueType::kUint16, raw(count)),
              value("split.tensors.count", ValueType::kInt32, raw(total))};
  b.tensors = {tensor(name, {4}, 0, 0)};
  b.data = raw(float(no)) + std::string(12, '\0');
  return b.bytes();
}

}  // namespace

TEST(reads_values_and_tensors) {
  for (uint32_t version : {2u, 3u}) {
    std::string file = sample();
    std::memcpy(&file[4], &version, 4);
    Header h = parse(file);
    CHECK(h.version == version);
    CHECK(h.metadata.size() == 8);
    CHECK(h.metadata[0].first == "u8" && h.metadata[0].second.bytes == "\xC8" && !h.metadata[0].second.is_array);
    CHECK(h.metadata[3].second.bytes == "\xE4\xBD\xA0\xFF");
    CHECK(h.metadata[4].second.is_array && h.metadata[4].second.bytes.size() == 12);
    CHECK(h.metadata[5].second.bytes == "abc");
    CHECK((h.metadata[5].second.ends == std::vector<uint64_t>{2, 2, 3}));
    CHECK(h.metadata[6].second.items.size() == 2 && h.metadata[6].second.items[1].bytes == "y");
    CHECK(h.tensors.size() == 3);
    const Tensor &q = h.tensors[0], &f = h.tensors[1], &odd = h.tensors[2];
    CHECK((q.shape == std::vector<int64_t>{2, 64}));
    CHECK(q.known && q.format == Format::kQ4_0 && q.bytes == 72 && q.offset == file.size() - 95);
    CHECK(f.known && f.bytes == 12 && f.offset == q.offset + 72);
    CHECK(!odd.known && odd.bytes == 7);
  }
}

TEST(refuses_what_is_not_gguf) {
  CHECK_THROWS(FormatError, "m.gguf: the header is missing: the file is empty", parse(""));
  CHECK_THROWS(FormatError, "begins with 'PK\\x03\\x04', expected 'GGUF'", parse("PK\3\4 and more"));
  CHECK_THROWS(FormatError, "cut short", parse("GGU"));
  Builder b;
  b.version = 1;
  CHECK_THROWS(FormatError, "GGUF version 1, expected 2 or 3", parse(b.bytes()));
  b.version = 4;
  CHECK_THROWS(FormatError, "GGUF version 4, expected 2 or 3", parse(b.bytes()));
  b.version = 0x03000000;
  CHECK_THROWS(FormatError, "big-endian", parse(b.bytes()));
  b.version = 3;
  CHECK(parse(b.bytes()).tensors.empty());
}

TEST(counts_do_not_allocate) {
  uint64_t huge = uint64_t{1} << 60;
  std::string empty = Builder().bytes();
  std::string tensors = empty, values = empty;
  std::memcpy(&tensors[8], &huge, 8);
  std::memcpy(&values[16], &huge, 8);
  CHECK_THROWS(FormatError, "1152921504606846976 tensors", parse(tensors));
  CHECK_THROWS(FormatError, "1152921504606846976 metadata values", parse(values));
  for (uint64_t count : {huge, ~uint64_t{0}, uint64_t{5}}) {
    for (uint32_t type = 0; type <= 12; ++type) {
      std::string bytes = array(static_cast<ValueType>(type), count, "abcd");
      CHECK_THROWS(FormatError, "metadata 'k' counts " + std::to_string(count),
                   parse(one_value(value("k", ValueType::kArray, bytes))));
    }
    CHECK_THROWS(FormatError, "bytes of text", parse(one_value(value("k", ValueType::kString, raw(count) + "abcd"))));
  }
}

TEST(refuses_bad_values) {
  CHECK_THROWS(FormatError, "value type 13", parse(one_value(text("k") + raw(uint32_t{13}) + "12345678")));
  CHECK_THROWS(FormatError, "value type 77",
               parse(one_value(value("k", ValueType::kArray, raw(uint32_t{77}) + raw(uint64_t{0})))));
  CHECK_THROWS(FormatError, "bool of byte 2", parse(one_value(value("k", ValueType::kBool, "\2"))));
  CHECK_THROWS(FormatError, "bool of byte 255",
               parse(one_value(value("k", ValueType::kArray, array(ValueType::kBool, 2, "\1\xFF")))));
  for (const char* key : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE4\xBD", "\xF0\x80\x80\x80"}) {
    CHECK_THROWS(FormatError, "expected UTF-8", parse(one_value(value(key, ValueType::kUint8, "x"))));
  }
  CHECK(parse(one_value(value("\xF0\x9F\x98\x80", ValueType::kUint8, "x"))).metadata.size() == 1);
  Builder b;
  b.values = {value("k", ValueType::kUint8, "x"), value("k", ValueType::kUint8, "x")};
  CHECK_THROWS(FormatError, "metadata 'k' is there twice", parse(b.bytes()));

  std::string nested = array(ValueType::kUint8, 1, "x");
  for (int depth = 2; depth <= 4; ++depth) nested = array(ValueType::kArray, 1, nested);
  CHECK(parse(one_value(value("k", ValueType::kArray, nested))).metadata.size() == 1);
  for (int depth = 5; depth <= 10000; ++depth) {
    if (depth == 5 || depth == 10000) {
      CHECK_THROWS(FormatError, "nests arrays more than 4 deep",
                   parse(one_value(value("k", ValueType::kArray, array(ValueType::kArray, 1, nested)))));
    }
    if (depth < 10) nested = array(ValueType::kArray, 1, nested);
  }
}

TEST(refuses_bad_alignment) {
  auto with = [](ValueType type, const std::string& bytes) {
    return parse(one_value(value("general.alignment", type, bytes)));
  };
  CHECK_THROWS(FormatError, "is 0, expected a power of two", with(ValueType::kUint32, raw(uint32_t{0})));
  CHECK_THROWS(FormatError, "is 24, expected a power of two", with(ValueType::kUint32, raw(uint32_t{24})));
  CHECK_THROWS(FormatError, "uint32", with(ValueType::kUint64, raw(uint64_t{32})));
  CHECK_THROWS(FormatError, "uint32", with(ValueType::kArray, array(ValueType::kUint32, 1, raw(uint32_t{32}))));
  CHECK(with(ValueType::kUint32, raw(uint32_t{1} << 31)).metadata.size() == 1);
}

TEST(refuses_bad_tensors) {
  uint64_t top = ~uint64_t{0};
  CHECK(parse(one_tensor({32, 4}, 2, 0, 72)).tensors[0].bytes == 72);
  CHECK_THROWS(FormatError, "tensor 't' has 72 bytes at offset 0", parse(one_tensor({32, 4}, 2, 0, 71)));
  CHECK_THROWS(FormatError, "has 0 dimensions", parse(one_tensor({}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "has 5 dimensions", parse(one_tensor({1, 1, 1, 1, 1}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "has a dimension of 0", parse(one_tensor({0}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "has a dimension of 0", parse(one_tensor({4, 0, 2}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "has a dimension of 18446744073709551615", parse(one_tensor({top}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "(2, 33) of Q4_0, expected rows of a multiple of 32", parse(one_tensor({33, 2}, 2, 0, 64)));
  // 2^62 * 4 bytes, and 2^32 * 2^32, are 0 modulo 2^64.
  CHECK_THROWS(FormatError, "more than the whole file", parse(one_tensor({uint64_t{1} << 62}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "more than the whole file",
               parse(one_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0, 64)));
  CHECK_THROWS(FormatError, "expected a multiple of 32", parse(one_tensor({1}, 0, 4, 64)));
  CHECK_THROWS(FormatError, "has 4 bytes at offset 64", parse(one_tensor({1}, 0, 64, 64)));
  CHECK_THROWS(FormatError, "bytes at offset 18446744073709551584", parse(one_tensor({1}, 0, top - 31, 64)));
  CHECK_THROWS(FormatError, "bytes at offset", parse(one_tensor({1}, 9999, 64, 64)));
  CHECK(parse(one_tensor({uint64_t{1} << 62, 4}, 9999, 0, 64)).tensors[0].bytes == 64);
}

TEST(refuses_tensors_in_each_others_way) {
  auto two = [](uint64_t first, uint64_t second, uint32_t type = 0) {
    Builder b;
    b.tensors = {tensor("a", {16}, type, first), tensor("b", {16}, type, second)};
    b.data = std::string(256, '\0');
    return parse(b.bytes());
  };
  CHECK(two(0, 64).tensors.size() == 2);
  CHECK(two(128, 0).tensors.size() == 2);
  CHECK_THROWS(FormatError, "tensor 'a' overlaps tensor 'b'", two(0, 32));
  CHECK_THROWS(FormatError, "tensor 'b' overlaps tensor 'a'", two(32, 0));
  CHECK_THROWS(FormatError, "overlaps", two(64, 64));
  CHECK_THROWS(FormatError, "overlaps", two(64, 64, 9999));
  Builder b;
  b.tensors = {tensor("a", {1}, 0, 0), tensor("a", {1}, 0, 32)};
  b.data = std::string(64, '\0');
  CHECK_THROWS(FormatError, "tensor 'a' is there twice", parse(b.bytes()));
}

TEST(survives_any_cut_and_any_byte) {
  const std::string file = sample();
  size_t loaded = 0;
  auto attempt = [&](const std::string& bytes) {
    try {
      parse(bytes);
      ++loaded;
    } catch (const FormatError&) {}
  };
  for (size_t size = 0; size < file.size(); ++size) attempt(file.substr(0, size));
  // Only the last tensor, of unknown size, can do with less.
  CHECK(loaded == 6);
  for (size_t at = 0; at < file.size(); ++at) {
    for (int flip : {0xFF, 1, 2, 4, 8, 16, 32, 64, 128}) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      attempt(changed);
    }
  }
  for (size_t at = 4; at + 8 <= file.size(); ++at) {
    for (int bits : {31, 32, 60, 63, 64}) {
      uint64_t power = bits == 64 ? 0 : uint64_t{1} << bits;
      for (uint64_t number : {power - 1, power, uint64_t{0}, uint64_t{1}}) {
        attempt(file.substr(0, at) + raw(number) + file.substr(at + 8));
        attempt(file.substr(0, at) + raw(static_cast<uint32_t>(number)) + file.substr(at + 4));
      }
    }
  }
  // All bytes of tensor data, among others, are free.
  CHECK(loaded > 95 * 9);
}

TEST(messages_are_utf8) {
  CHECK(printable("a\xFF\n\x7F\xE4\xBD\xA0") == "a\\xff\\x0a\\x7f\xE4\xBD\xA0");
  CHECK(printable(std::string(300, 'x')) == std::string(200, 'x') + "...");
  CHECK(printable("\xE4\xBD\xA0\xE4\xBD\xA0", 1) == "\xE4\xBD\xA0...");
}

TEST(opens_files) {
  Folder folder;
  CHECK_THROWS(FileError, "such file or directory", Gguf((folder.path / "none.gguf").u8string()));
  CHECK_THROWS(FileError, "directory", Gguf(folder.path.u8string()));
  CHECK_THROWS(FormatError, "empty", Gguf(folder.write("empty.gguf", "")));
  std::string path = folder.write("\xE6\xA8\xA1\xE5\x9E\x8B \xF0\x9F\x98\x80.gguf", sample());
  Gguf gguf(path);
  CHECK(gguf.contents()->bytes() == sample().size());
  CHECK(gguf.find("none") == nullptr);
  const Tensor* q = gguf.find("q");
  CHECK(q != nullptr && bytes_of(*q) == std::string(72, '\7'));
  std::shared_ptr<const Gguf::Contents> held = gguf.contents();
  gguf.close();
  gguf.close();
  CHECK(bytes_of(*q) == std::string(72, '\7'));
  CHECK_THROWS(std::invalid_argument, "closed", gguf.contents());
  CHECK_THROWS(std::invalid_argument, "closed", gguf.find("q"));
}

TEST(opens_split_files) {
  Folder folder;
  folder.write("m-00001-of-00002.gguf", part(0, 2, "a", 2));
  std::string second = folder.write("m-00002-of-00002.gguf", part(1, 2, "b", 2));
  Gguf gguf(second);
  CHECK(gguf.contents()->parts.size() == 2);
  float value;
  gguf.find("b")->read(0, sizeof value, &value);
  CHECK(value == 1.0f && gguf.find("a")->part == 0 && gguf.find("b")->part == 1);

  CHECK_THROWS(FileError, "x-00001-of-00002.gguf", Gguf(folder.write("x-00002-of-00002.gguf", part(1, 2, "b", 2))));
  CHECK_THROWS(FormatError, "ends in '-00002-of-00002.gguf'", Gguf(folder.write("y.gguf", part(1, 2, "b", 2))));
  CHECK_THROWS(FormatError, "'split.no' is 2", Gguf(folder.write("y.gguf", part(2, 2, "b", 2))));
  folder.write("z-00001-of-00002.gguf", part(1, 2, "a", 2));
  CHECK_THROWS(FormatError, "expected 0 of 2", Gguf(folder.write("z-00002-of-00002.gguf", part(1, 2, "b", 2))));
  folder.write("d-00001-of-00002.gguf", part(0, 2, "b", 2));
  CHECK_THROWS(FormatError, "in another part", Gguf(folder.write("d-00002-of-00002.gguf", part(1, 2, "b", 2))));
  folder.write("n-00001-of-00002.gguf", part(0, 2, "a", 3));
  CHECK_THROWS(FormatError, "have 2 tensors, 'split.tensors.count' is 3",
               Gguf(folder.write("n-00002-of-00002.gguf", part(1, 2, "b", 3))));
}

TEST(threads_read_while_another_closes) {
  Folder folder;
  Gguf gguf(folder.write("m.gguf", sample()));
  std::atomic<int> reads{0}, refused{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&] {
      try {
        for (;;) {
          std::shared_ptr<const Gguf::Contents> held = gguf.contents();
          const Tensor* q = gguf.find("q");
          reads += bytes_of(*q)[5] == 7;
        }
      } catch (const std::invalid_argument&) { ++refused; }
    });
  }
  while (reads < 100) std::this_thread::yield();
  gguf.close();
  for (std::thread& reader : readers) reader.join();
  CHECK(refused == 4);
}

TEST(headers_of_several_pieces) {
  Builder b;
  std::string words;
  for (int i = 0; i < 100000; ++i) words += text("word " + std::to_string(i));
  b.values = {value("words", ValueType::kArray, array(ValueType::kString, 100000, words)),
              value("long", ValueType::kString, text(std::string(3 * kHeaderPiece, 'x')))};
  const Header header = parse(b.bytes());
  const Value& list = header.metadata[0].second;
  CHECK(list.ends.size() == 100000 && list.bytes.substr(list.ends[99998]) == "word 99999");
  CHECK(header.metadata[1].second.bytes == std::string(3 * kHeaderPiece, 'x'));

  Folder folder;
  const std::string path = folder.write("m.gguf", b.bytes());
  int asked = 0;
  const auto count = [&] { ++asked; };
  Gguf whole(path, count);
  CHECK(asked == static_cast<int>((b.bytes().size() + kHeaderPiece - 1) / kHeaderPiece));
  const auto stop = [&] {
    if (--asked == 2) throw std::runtime_error("enough");
  };
  CHECK_THROWS(std::runtime_error, "enough", Gguf(path, stop));
}

#ifndef _WIN32  // which lets nobody write to a file that is open here
TEST(files_that_change) {
  Folder folder;
  const std::string bytes(100000, 'a'), path = folder.write("m.gguf", bytes);
  const File file(path);
  file.check_unchanged();
  std::string read(1000, ' ');
  file.read(99000, 1000, &read[0]);
  CHECK(read == std::string(1000, 'a'));
  CHECK_THROWS(FileError, "ends at byte 100000", file.read(99001, 1000, &read[0]));

  std::filesystem::resize_file(path, 500);
  CHECK_THROWS(FileError, "m.gguf: The file was changed", file.check_unchanged());
  file.read(0, 500, &read[0]);
  CHECK_THROWS(FileError, "ends at byte 500 and had 100000 bytes when it was opened", file.read(0, 1000, &read[0]));
  CHECK_THROWS(FileError, "ends at byte 600 and", file.read(600, 1, &read[0]));  // as far as it came

  folder.write("m.gguf", std::string(100000, 'b'));
  CHECK_THROWS(FileError, "was changed", file.check_unchanged());
  file.read(0, 1000, &read[0]);
  CHECK(read == std::string(1000, 'b'));

  const File other(path);
  std::filesystem::remove(path);
  other.read(0, 1000, &read[0]);
  other.check_unchanged();
}

TEST(reads_that_fail) {
  Folder folder;
  const File file(folder.write("m.gguf", std::string(100, 'a')));
  // No memory to write to: the system's own error comes through.
  CHECK_THROWS(FileError, "Bad address", file.read(0, 100, nullptr));
}
#endif

RUN_TESTS()
