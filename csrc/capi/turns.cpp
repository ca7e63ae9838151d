#include "turns.h"

#include <algorithm>
#include <stdexcept>

#include "keys.h"
#include "text/utf8.h"

namespace glmlite {

namespace {

constexpr char kStart[] = "start", kAnswer[] = "answer";
constexpr char kBreak[] = "\uFDD0";  // a noncharacter by which Python breaks control tokens apart: no text has it

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_space(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
         code == 0x205F || code == 0x3000;
}

}  // namespace

std::string_view without_leading_space(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const Character c = character(text, begin);
    if (!is_space(c.code)) break;
    begin += c.bytes;
  }
  return text.substr(begin);
}

std::string_view stripped(std::string_view text) {
  text = without_leading_space(text);
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const Character c = character(text, at);
    at += c.bytes;
    if (!is_space(c.code)) end = at;
  }
  return text.substr(0, end);
}

Turns::Turns(const Metadata& metadata, int64_t vocabulary) {
  const Keys keys(metadata);
  const std::string at = "glmlite.chat.";
  if (keys.has(at + "refused")) {
    refused_ = keys.text(at + "refused");
    if (refused_.empty()) refused_ = "chat: this model does not";
    return;
  }
  joined_ = keys.flag(at + "joined");
  begins_ = keys.flag(at + "begins");
  trims_ = keys.flag(at + "trims");
  empty_ = keys.text(at + "empty");
  stripped_ = keys.texts(at + "stripped");
  control_ = keys.texts(at + "control");
  control_.erase(std::remove(control_.begin(), control_.end(), std::string()), control_.end());
  ends_ = keys.ids(at + "end_ids", vocabulary);
  marks_ = keys.ids(at + "marks", vocabulary);
  const auto before = keys.texts(at + "before"), after = keys.texts(at + "after");
  Keys::same_length(at + "after", after.size(), at + "before", before.size());
  if (joined_) {
    const auto texts = keys.texts(at + "texts");
    Keys::same_length(at + "texts", texts.size(), at + "before", before.size());
    for (size_t i = 0; i < texts.size(); ++i) between_[{before[i], after[i]}].text = texts[i];
    return;
  }
  const auto ids = keys.ids(at + "ids", vocabulary);
  const auto ends = keys.numbers<uint32_t>(at + "ends");
  Keys::same_length(at + "ends", ends.size(), at + "before", before.size());
  for (size_t i = 0, begin = 0; i < ends.size(); begin = ends[i++]) {
    if (ends[i] < begin || ends[i] > ids.size()) throw FormatError(at + "ends: are not in order");
    between_[{before[i], after[i]}].ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                               ids.begin() + static_cast<std::ptrdiff_t>(ends[i]));
  }
}

const Turns::Between& Turns::between(const std::string& before, const std::string& after) const {
  const auto found = between_.find({before, after});
  if (found != between_.end()) return found->second;
  throw std::domain_error(
      after == kAnswer   ? "messages: the last is of the role '" + before + "', which this model does not answer"
      : before == kStart ? "messages: the first is of the role '" + after + "', which this model does not take"
                         : "messages: '" + after + "' after '" + before + "', which this model does not take");
}

// A message's text in the parts that are encoded by themselves, so that no control token is spelled in any of them.
std::vector<std::string> Turns::broken(std::string_view text) const {
  std::string said(text);
  for (size_t at; (at = said.find(kBreak)) != std::string::npos;) said.erase(at, sizeof kBreak - 1);
  std::vector<std::string> parts(1);
  for (size_t at = 0; at < said.size();) {
    const bool opens = said[at] == '<' || said[at] == '[';
    const auto found = std::find_if(control_.begin(), control_.end(), [&](const std::string& token) {
      return opens && said.compare(at, token.size(), token) == 0;
    });
    parts.back() += said[at++];
    if (found == control_.end()) continue;
    parts.push_back(said.substr(at, found->size() - 1));
    at += found->size() - 1;
  }
  return parts;
}

std::vector<int32_t> Turns::finish(const Tokenizer& tokenizer, std::vector<int32_t> ids) const {
  if (!begins_) return ids;
  const auto& prefix = tokenizer.prefix();
  ids = tokenizer.begin(ids);
  if (prefix.size() == 1) return ids;
  ids.erase(std::remove_if(ids.begin() + static_cast<std::ptrdiff_t>(prefix.size()), ids.end(),
                           [&](int32_t id) { return std::find(prefix.begin(), prefix.end(), id) != prefix.end(); }),
            ids.end());
  return ids;
}

std::vector<int32_t> Turns::render(const Tokenizer& tokenizer, std::vector<Message> messages) const {
  if (!refused_.empty()) throw std::domain_error(refused_);
  if (messages.empty()) throw std::invalid_argument("messages: none, expected at least one");
  for (const Message& m : messages)
    if (m.role != "system" && m.role != "user" && m.role != "assistant")
      throw std::invalid_argument("messages: role '" + printable(m.role, 40) + "', expected system, user or assistant");
  for (size_t i = 0; empty_ != "kept" && i < messages.size();) {
    if (!messages[i].text.empty()) {
      ++i;
    } else if (empty_ == "left out") {
      messages.erase(messages.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      throw std::domain_error("messages: one without text, which this model does not take");
    }
  }
  std::vector<int32_t> ids;
  std::string text;
  const auto flush = [&] {
    if (!text.empty()) tokenizer.encode(text, true, ids);
    text.clear();
  };
  std::string before = kStart;
  for (const Message& m : messages) {
    const Between& stands = between(before, m.role);
    const std::string_view said = has(stripped_, m.role) ? stripped(m.text) : m.text;
    before = m.role;
    if (!joined_) {
      ids.insert(ids.end(), stands.ids.begin(), stands.ids.end());
      tokenizer.encode(said, false, ids);
      continue;
    }
    text += stands.text;
    bool first = true;
    for (const std::string& part : broken(said)) {
      if (!first) flush();
      text += part;
      first = false;
    }
  }
  const Between& end = between(before, kAnswer);
  ids.insert(ids.end(), end.ids.begin(), end.ids.end());
  text += end.text;
  flush();
  return finish(tokenizer, std::move(ids));
}

}  // namespace glmlite
