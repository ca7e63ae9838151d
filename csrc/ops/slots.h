// What an op's file in this folder reads a recorded op with: each slot is asked for once, and checked as it is given.
// A kind of op says its name (kName), which of its members are values that it reads (inputs) and which are weights, or
// lists of weights (weights), and how it is read.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../op_spec.h"

namespace glmlite {

class Gguf;
class Program;
struct CacheShape;
enum class Role;

// Values are ids, which are the indices of the ops that make them; weights are indices into Program::weights. -1: none.
// Every method throws std::invalid_argument for what the recorder would not make, and FormatError, naming the tensor,
// for what is wrong with the file. Sizes of -1 may be any.
class Slots {
 public:
  struct Sizes {
    int64_t count, n, k;  // count matrices of (n, k)
  };

  Slots(const Gguf& file, const OpSpec& spec, Program& program) : file_(file), spec_(spec), program_(program) {}

  int input(const char* slot);
  // Slot "add", what is added to the result: with the result's width and the rows of x; or -1.
  int addend(int x);
  int64_t columns(int value) const;

  double number(const char* slot, double low, double high);
  int count(const char* slot, int low, int high);

  // The columns of a matrix may be a tensor's last three axes: a kernel of a convolution.
  std::vector<int> matrices(const char* slot, int64_t n, int64_t k);
  int matrix(const char* slot, int64_t n, int64_t k);
  std::vector<int> experts(const char* slot, int64_t count, int64_t n, int64_t k);
  std::vector<int> vectors(const char* slot, int64_t n);
  int vector(const char* slot, int64_t n);
  int optional_vector(const char* slot, int64_t n);
  std::vector<int> prefix(int64_t columns);  // of the cache: keys and values, or nothing
  Sizes sizes(int weight) const;
  void same_rows(int vector, int matrix) const;
  // Of an expert the device keeps what these have of it in one stretch.
  void one_group(const std::vector<int>& weights);

  // Index into Program::ropes, or -1.
  int rope(int columns);
  // Index of the op's KV cache, counted in the order of the program; one that keeps nothing may get another's.
  int cache(const CacheShape& shape);
  // The op multiplies the value with these, of which some may be quantized.
  void multiplies(int value, const std::vector<int>& weights);
  // What the value, a routing, chooses among, and how many for a row.
  std::pair<int64_t, int> routed(int value) const;

  int64_t width() const { return spec_.width; }  // of the result
  void width(int64_t want) const;
  void name(int weight);  // adds it to `text`

  // Throws if the op has slots that nobody asked for.
  void finish() const;
  const std::string& text() const { return text_; }
  [[noreturn]] void bad(const std::string& what) const;
  [[noreturn]] void damaged(int weight, const std::string& what) const;  // FormatError: "moe: 'its name' what"

 private:
  std::vector<int> tensors(const char* slot, Role role, const std::vector<int64_t>& want);
  int only(const char* slot, const std::vector<int>& found) const;

  const Gguf& file_;
  const OpSpec& spec_;
  Program& program_;
  std::set<std::string> asked_{"rope_factors"};  // Python divides the frequencies by them
  std::string text_ = spec_.kind + " %" + std::to_string(spec_.out);
};

}  // namespace glmlite
