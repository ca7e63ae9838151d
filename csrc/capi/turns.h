// How a conversation becomes a prompt: the table that glmlite/convert/turns.py has found, which knows what it means.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf.h"
#include "text/tokenizer.h"

namespace glmlite {

struct Message {
  std::string role;
  std::string_view text;
};

class Turns {
 public:
  // Throws FormatError. vocabulary: ids are below.
  Turns(const Metadata& metadata, int64_t vocabulary);

  const std::string& refused() const { return refused_; }  // why the model is not spoken to; empty: it is
  // The prompt, up to where the answer begins. Throws std::invalid_argument for roles that are not known, and
  // std::domain_error for what the table does not say.
  std::vector<int32_t> render(const Tokenizer& tokenizer, std::vector<Message> messages) const;

  const std::vector<int32_t>& ends() const { return ends_; }    // that end an answer besides the tokenizer's
  const std::vector<int32_t>& marks() const { return marks_; }  // special tokens that an answer's text keeps
  bool trims() const { return trims_; }                         // an answer's text begins with its first word

 private:
  // What stands between two messages: one of these, as `joined_` says.
  struct Between {
    std::string text;
    std::vector<int32_t> ids;
  };

  const Between& between(const std::string& before, const std::string& after) const;
  std::vector<std::string> broken(std::string_view text) const;
  std::vector<int32_t> finish(const Tokenizer& tokenizer, std::vector<int32_t> ids) const;

  std::string refused_;
  bool joined_ = false, begins_ = false, trims_ = false;
  std::map<std::pair<std::string, std::string>, Between> between_;
  std::vector<std::string> stripped_, control_;
  std::string empty_;
  std::vector<int32_t> ends_, marks_;
};

// Without the white space at its beginning, and at its end; white space as Python's str.strip has it.
std::string_view without_leading_space(std::string_view text);
std::string_view stripped(std::string_view text);

}  // namespace glmlite
