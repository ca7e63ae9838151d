#include "engine.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

#include "cpu/cores.h"
#include "errors.h"
#include "memory.h"

namespace glmlite {

// Takes everything back to where it was, unless the call ends well.
class Engine::Rollback {
 public:
  Rollback(PageTable& table, const std::vector<Work>& works) : table_(table), works_(works) {
    for (const Work& w : works) {
      lengths_.push_back(table.at(w.sequence).length);
      marks_.push_back(w.sampler ? w.sampler->mark() : Sampler::Mark{});
    }
  }
  ~Rollback() {
    if (kept_) return;
    for (size_t i = 0; i < works_.size(); ++i) {
      // Pages reserved beyond the old length go back too.
      table_.truncate(works_[i].sequence, lengths_[i]);
      if (works_[i].sampler) works_[i].sampler->rewind(marks_[i]);
    }
  }
  void keep() { kept_ = true; }

 private:
  PageTable& table_;
  const std::vector<Work>& works_;
  std::vector<int64_t> lengths_;
  std::vector<Sampler::Mark> marks_;
  bool kept_ = false;
};

// A sequence shares the prefix's whole pages, and begins with its own copy of the last, partial one.
CachePages::CachePages(const Program& program, int64_t kv_tokens)
    : tokens((program.prefix % kPageTokens + kv_tokens + kPageTokens - 1) / kPageTokens),
      total(tokens + (program.prefix + kPageTokens - 1) / kPageTokens) {}

Engine::Engine(const Gguf& file, const std::vector<OpSpec>& ops, const EngineOptions& options,
               const LoadProgress& progress) {
  const auto held = file.contents();  // another thread may close the file while its weights are packed
  Program program(file, ops);
  if (options.kv_tokens < 1 || options.kv_tokens > (int64_t{1} << 40))
    throw std::invalid_argument("kv_tokens: " + std::to_string(options.kv_tokens) + ", expected 1 or more");
  if (options.threads < 0 || options.threads > kMostThreads)
    throw std::invalid_argument("threads: " + std::to_string(options.threads) + ", expected 1 to 1024, or 0");
  tokens_ = program.tokens;
  std::copy(std::begin(program.axis_limit), std::end(program.axis_limit), axis_limit_);
  selects_ = program.selects();
  input_ = program.input;
  embedding_ = program.tokens > 0 ? program.ops[0].width : 0;
  keeps_ = program.keeps;
  const int64_t prefix = program.prefix, vocab = program.vocab;
  const CachePages pages(program, options.kv_tokens);
  const int64_t total = pages.total;
  trim_heap();  // what reading the file's metadata left, before the weights come on top of it
  executor_ = options.make(std::move(program),
                           {total, options.kv_type, options.threads, options.adaptive, options.priority, options.isa,
                            options.device, options.gpu_layers, options.packed, options.weight_room},
                           progress);
  held->check_unchanged();
  table_ = std::make_unique<PageTable>(total, kPageTokens);
  base_ = table_->create();
  if (prefix > 0) {
    std::vector<PageTable::Copy> none;
    table_->reserve(base_, prefix, &none);
    table_->extend(base_, prefix);
    executor_->write_prefix(table_->at(base_).pages);
  }
  info_ = {vocab,           prefix, pages.tokens * kPageTokens, executor_->weight_bytes(), executor_->kv_bytes(),
           executor_->isa()};
}

void Engine::require_open() const {
  if (!executor_) throw std::invalid_argument("the engine is closed");
}

int Engine::new_sequence() {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  return table_->fork(base_, info_.prefix);
}

int Engine::fork(int sequence, int64_t length) {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  if (length < 0) throw std::invalid_argument("fork: length " + std::to_string(length));
  return table_->fork(sequence, length + info_.prefix);
}

void Engine::truncate(int sequence, int64_t length) {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  if (length < 0) throw std::invalid_argument("truncate: length " + std::to_string(length));
  table_->truncate(sequence, length + info_.prefix);
}

void Engine::free(int sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  if (sequence == base_) throw std::invalid_argument("sequence " + std::to_string(sequence) + ": there is none");
  table_->free(sequence);
}

int64_t Engine::length(int sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  return table_->at(sequence).length - info_.prefix;
}

int64_t Engine::kv_free() {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  return table_->free_pages() * table_->page_tokens();
}

size_t Engine::scratch_bytes() {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  return executor_->scratch_bytes();
}

void Engine::release() {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  executor_->release();
}

double Engine::progress() const {
  const std::shared_ptr<Executor> executor = std::atomic_load(&executor_);
  return executor ? executor->progress() : 0;
}

int Engine::threads() const {
  const std::shared_ptr<Executor> executor = std::atomic_load(&executor_);
  return executor ? executor->threads() : 0;
}

int Engine::threads_now() const {
  const std::shared_ptr<Executor> executor = std::atomic_load(&executor_);
  return executor ? executor->threads_now() : 0;
}

void Engine::set_threads(int threads) {
  const std::shared_ptr<Executor> executor = std::atomic_load(&executor_);
  if (!executor) throw std::invalid_argument("the engine is closed");
  if (threads < 1 || threads > kMostThreads)
    throw std::invalid_argument("threads: " + std::to_string(threads) + ", expected 1 to 1024");
  executor->set_threads(threads);
}

void Engine::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::atomic_store(&executor_, std::shared_ptr<Executor>());
  table_.reset();
  trim_heap();
}

// Checks the works and lays their tokens out as one step.
void Engine::plan(const std::vector<Work>& works, const std::vector<int32_t>& rows, Step* step) {
  std::set<int> seen;
  for (const Work& w : works) {
    const std::string who = "sequence " + std::to_string(w.sequence) + ": ";
    const PageTable::Sequence& s = table_->at(w.sequence);
    if (w.sequence == base_) throw std::invalid_argument(who + "there is none");
    if (!seen.insert(w.sequence).second) throw std::invalid_argument(who + "twice in one step");
    if (w.tokens.empty()) throw std::invalid_argument(who + "no tokens");
    if (w.positions.size() != w.tokens.size())
      throw std::invalid_argument(who + std::to_string(w.tokens.size()) + " tokens, " +
                                  std::to_string(w.positions.size()) + " positions");
    const auto count = static_cast<int64_t>(w.tokens.size());
    if (static_cast<int64_t>(w.input.size()) != count * input_)
      throw std::invalid_argument(who + "input of " + std::to_string(w.input.size()) + " values, the program takes " +
                                  std::to_string(input_) + " for each of " + std::to_string(count) + " tokens");
    const int64_t given = std::count(w.tokens.begin(), w.tokens.end(), kGiven);
    if (static_cast<int64_t>(w.embeddings.size()) != given * embedding_)
      throw std::invalid_argument(who + "embeddings of " + std::to_string(w.embeddings.size()) + " values, expected " +
                                  std::to_string(embedding_) + " for each of " + std::to_string(given) +
                                  " tokens that are " + std::to_string(kGiven));
    if (!keeps_ && s.length > info_.prefix)
      throw std::invalid_argument(who + "has been read; the program keeps nothing of what it reads");
    const int64_t after = s.length - info_.prefix + count;
    if (w.visible < 0 || w.visible > after)
      throw std::invalid_argument(who + "visible is " + std::to_string(w.visible) + ", the sequence will have " +
                                  std::to_string(after));
    const auto begin = static_cast<int64_t>(step->tokens.size());
    for (int64_t i = 0; i < count; ++i) {
      if (w.tokens[i] != kGiven && (w.tokens[i] < 0 || w.tokens[i] >= tokens_))
        throw std::invalid_argument(who + "token " + std::to_string(w.tokens[i]) + ", the vocabulary has " +
                                    std::to_string(tokens_));
      step->tokens.push_back(w.tokens[i] == kGiven ? static_cast<int32_t>(-1 - step->given_rows++) : w.tokens[i]);
      for (int axis = 0; axis < kAxes; ++axis) {
        const int32_t position = w.positions[i][axis];
        if (position < 0 || position >= axis_limit_[axis])
          throw std::invalid_argument(who + "position " + std::to_string(position) + " on axis " +
                                      std::to_string(axis) + ", the model has positions 0 to " +
                                      std::to_string(axis_limit_[axis] - 1));
        step->positions[axis].push_back(position);
      }
      step->entry.push_back(s.length + i);
      step->visible.push_back(w.visible > 0 ? info_.prefix + w.visible : s.length + i + 1);
    }
    step->runs.push_back({begin, begin + count, nullptr});
  }
  if (works.empty()) throw std::invalid_argument("a step needs at least one token");
  for (int32_t row : rows) {
    if (row < 0 || row >= static_cast<int64_t>(step->tokens.size()))
      throw std::invalid_argument("row " + std::to_string(row) + ", the step has " +
                                  std::to_string(step->tokens.size()) + " tokens");
  }
  step->rows = rows;
}

// Pages for all works, or none.
bool Engine::reserve(const std::vector<Work>& works) {
  for (size_t i = 0; i < works.size(); ++i) {
    std::vector<PageTable::Copy> copies;
    if (!table_->reserve(works[i].sequence, static_cast<int64_t>(works[i].tokens.size()), &copies)) {
      for (size_t j = 0; j < i; ++j) table_->truncate(works[j].sequence, table_->at(works[j].sequence).length);
      return false;
    }
    for (const auto& copy : copies) executor_->copy_page(copy.from, copy.to);
  }
  return true;
}

// The rows of all works; `all` holds them where they lie apart.
static const float* one_after_another(const std::vector<Work>& works, std::vector<float> Work::* rows,
                                      std::vector<float>* all) {
  if (works.size() == 1) return (works[0].*rows).data();
  for (const Work& w : works) all->insert(all->end(), (w.*rows).begin(), (w.*rows).end());
  return all->data();
}

// One step of works whose pages are reserved. Where the first token whose numbers are not finite is a guess, which may
// be wrong, all stays as it was.
StepResult Engine::advance(const std::vector<Work>& works, const std::vector<int32_t>& rows,
                           std::vector<std::optional<DrawRequest>> requests, const CancelFlag* cancel,
                           const Watch* watch) {
  Step step;
  plan(works, rows, &step);
  step.requests = std::move(requests);
  for (size_t i = 0; i < works.size(); ++i) step.runs[i].pages = table_->at(works[i].sequence).pages.data();
  std::vector<float> inputs, embeddings;
  step.input = one_after_another(works, &Work::input, &inputs);
  step.given = one_after_another(works, &Work::embeddings, &embeddings);
  const StepResult result = executor_->run(step, cancel, watch);
  if (const int64_t bad = result.bad_token; bad >= 0) {
    const auto run = std::find_if(step.runs.begin(), step.runs.end(), [&](const Run& r) { return bad < r.end; });
    const Work& w = works[static_cast<size_t>(run - step.runs.begin())];
    if (bad >= run->end - static_cast<int64_t>(w.drafted)) return result;
    throw std::runtime_error(
        "sequence " + std::to_string(w.sequence) + ": the model's numbers are not finite at token " +
        std::to_string(step.entry[bad] - info_.prefix) + " (id " + std::to_string(std::max(step.tokens[bad], kGiven)) +
        "): its weights are damaged, or overflow");
  }
  for (const Work& w : works) table_->extend(w.sequence, static_cast<int64_t>(w.tokens.size()));
  return result;
}

static std::runtime_error cache_full(const PageTable& table) {
  return std::runtime_error("the KV cache is full: " + std::to_string(table.free_pages() * table.page_tokens()) +
                            " tokens' room is left, in pages of " + std::to_string(table.page_tokens()));
}

// What the work's sampler asks of a device. Throws std::invalid_argument, naming the sequence.
static DrawRequest request_of(const Work& work, int64_t vocab) {
  try {
    return work.sampler->request(vocab);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("sequence " + std::to_string(work.sequence) + ": " + error.what());
  }
}

std::vector<float> Engine::step(const std::vector<Work>& works, const std::vector<int32_t>& rows,
                                const CancelFlag* cancel, const Watch* watch) {
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  Step checked;
  plan(works, rows, &checked);
  Rollback rollback(*table_, works);
  if (!reserve(works)) throw cache_full(*table_);
  const float* logits = advance(works, rows, {}, cancel, watch).logits;
  std::vector<float> result;
  result.reserve(rows.size() * static_cast<size_t>(info_.vocab));
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* row = logits + (selects_ ? static_cast<int64_t>(i) : rows[i]) * info_.vocab;
    result.insert(result.end(), row, row + info_.vocab);
  }
  rollback.keep();
  return result;
}

// Until it is known: as where a step of one waits for memory, and one of seven for the cores.
DraftCost::DraftCost(size_t works) : works_(static_cast<double>(works)), value_(std::min(0.15 * works_, 1.0)) {}

// The last four steps without guesses and the last eight with some count most: contexts grow, machines are busy.
void DraftCost::note(size_t drafted, double ms) {
  constexpr double kMost = 2;  // whatever else held a step up
  if (drafted == 0) {
    plain_ = plain_ > 0 ? plain_ + (ms - plain_) / 4 : ms;
  } else if (plain_ > 0) {
    const double cost = (ms / plain_ - 1) * works_ / static_cast<double>(drafted);
    value_ += (std::min(std::max(cost, 0.01), kMost) - value_) / 8;
  }
}

std::optional<Position> Engine::position_of(const Work& work, size_t n) const {
  Position position{};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t at = work.next_position[axis] + static_cast<int64_t>(n) * work.position_step[axis];
    if (at >= axis_limit_[axis]) return std::nullopt;
    position[axis] = static_cast<int32_t>(at);
  }
  return position;
}

// Where a step is more than the last token, it is a prompt's, which takes its time without guesses.
void Engine::add_draft(Work* work, size_t written, double cost) const {
  if (!work->sampler || work->tokens.size() != 1 || work->visible > 0 || input_ > 0) return;
  for (const int32_t token : work->sampler->draft(work->budget - static_cast<int64_t>(written) - 1, cost)) {
    const std::optional<Position> position = position_of(*work, written + work->drafted);
    if (token < 0 || token >= tokens_ || !position) return;
    work->tokens.push_back(token);
    work->positions.push_back(*position);
    ++work->drafted;
  }
}

static void drop_drafts(std::vector<Work>* works) {
  for (Work& w : *works) {
    w.tokens.resize(w.tokens.size() - w.drafted);
    w.positions.resize(w.tokens.size());
    w.drafted = 0;
  }
}

std::vector<std::vector<Sample>> Engine::write(std::vector<Work>* works, const CancelFlag* cancel) {
  StepResult result;
  std::vector<int32_t> rows;
  std::vector<size_t> first_row(works->size());  // of each work that samples
  do {
    rows.clear();
    std::vector<std::optional<DrawRequest>> requests;
    int32_t end = 0;
    for (size_t i = 0; i < works->size(); ++i) {
      const Work& w = (*works)[i];
      end += static_cast<int32_t>(w.tokens.size());
      if (!w.sampler) continue;
      first_row[i] = rows.size();
      const Sampler::Mark mark = w.sampler->mark();
      for (size_t left = w.drafted + 1; left-- > 0;) {
        rows.push_back(end - 1 - static_cast<int32_t>(left));
        requests.emplace_back(request_of(w, info_.vocab));
        if (w.sampler->needs_logits()) requests.back().reset();
        if (left > 0) w.sampler->take(w.tokens[w.tokens.size() - left]);
      }
      w.sampler->rewind(mark);
    }
    result = advance(*works, rows, std::move(requests), cancel, nullptr);
    if (result.bad_token >= 0) drop_drafts(works);
  } while (result.bad_token >= 0);

  std::vector<std::vector<Sample>> samples(works->size());
  executor_->share(static_cast<int64_t>(works->size()), [&](int64_t i) {
    const Work& w = (*works)[i];
    if (!w.sampler) return;
    const int32_t* guesses = w.tokens.data() + w.tokens.size() - w.drafted;
    for (size_t j = 0; j <= w.drafted; ++j) {
      const size_t row = first_row[i] + j;
      const int32_t token = result.tokens.empty() ? -1 : result.tokens[row];
      const int64_t at = selects_ ? static_cast<int64_t>(row) : rows[row];
      samples[i].push_back(token >= 0 ? w.sampler->take(token)
                                      : w.sampler->sample(result.logits + at * info_.vocab, info_.vocab));
      const int32_t drawn = samples[i].back().token;
      if (w.sampler->stops(drawn) || j == w.drafted || drawn != guesses[j]) break;
    }
  });
  for (size_t i = 0; i < works->size(); ++i) {
    const Work& w = (*works)[i];
    if (!w.drafted) continue;
    const auto wrong = static_cast<int64_t>(w.drafted + 1 - samples[i].size());
    table_->truncate(w.sequence, table_->at(w.sequence).length - wrong);
  }
  return samples;
}

std::vector<std::vector<Sample>> Engine::run(const std::vector<Work>& works, double max_ms, const CancelFlag* cancel) {
  using Milliseconds = std::chrono::duration<double, std::milli>;
  const auto start = std::chrono::steady_clock::now();
  std::lock_guard<std::mutex> lock(mutex_);
  require_open();
  Step checked;
  plan(works, {}, &checked);
  Rollback rollback(*table_, works);
  std::vector<std::vector<Sample>> samples(works.size());
  std::vector<Work> active = works;
  std::vector<size_t> origin(works.size());  // index in `works` of each active one
  for (size_t i = 0; i < works.size(); ++i) origin[i] = i;
  for (bool first = true; !active.empty(); first = false) {
    DraftCost& cost = draft_costs_.try_emplace(active.size(), active.size()).first->second;
    for (size_t i = 0; i < active.size(); ++i) add_draft(&active[i], samples[origin[i]].size(), cost.value());
    bool room = reserve(active);
    if (!room) {
      drop_drafts(&active);
      room = reserve(active);
    }
    if (!room && first) throw cache_full(*table_);
    if (!room) break;  // what was sampled so far is good
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::vector<Sample>> drawn = write(&active, cancel);
    const auto now = std::chrono::steady_clock::now();
    size_t drafted = 0;
    bool writes = true;
    for (const Work& w : active) {
      drafted += w.drafted;
      writes &= w.sampler && w.tokens.size() == 1 + w.drafted;
    }
    if (writes) cost.note(drafted, Milliseconds(now - begin).count());
    std::vector<Work> next;
    std::vector<size_t> next_origin;
    for (size_t i = 0; i < active.size(); ++i) {
      Work& w = active[i];
      if (!w.sampler) continue;
      if (writes) w.sampler->settle(w.drafted, drawn[i].size() - 1, cost.value());
      auto& out = samples[origin[i]];
      std::move(drawn[i].begin(), drawn[i].end(), std::back_inserter(out));
      const int32_t token = out.back().token;
      if (static_cast<int64_t>(out.size()) >= w.budget || w.sampler->stops(token) || token >= tokens_) continue;
      const std::optional<Position> position = position_of(w, out.size() - 1);
      if (!position) continue;
      Work more;
      more.sequence = w.sequence;
      more.tokens = {token};
      more.positions = {*position};
      more.sampler = w.sampler;
      more.budget = w.budget;
      more.next_position = w.next_position;
      more.position_step = w.position_step;
      next.push_back(std::move(more));
      next_origin.push_back(origin[i]);
    }
    active = std::move(next);
    origin = std::move(next_origin);
    if (Milliseconds(now - start).count() >= max_ms) break;
  }
  rollback.keep();
  return samples;
}

}  // namespace glmlite
