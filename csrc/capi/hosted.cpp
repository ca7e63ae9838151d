#include "hosted.h"

#include <algorithm>
#include <chrono>
#include <unordered_set>

#include "errors.h"
#include "exported.h"
#include "keys.h"
#include "memory.h"

namespace glmlite {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kChunk = 256;  // tokens of a prompt in a call: large enough to share the unpacking of weights
constexpr int64_t kDefaultContext = 4096, kLeastContext = 512;
constexpr size_t kReserve = 8;  // a part of what is free that is left to others, where a model does not fit
constexpr std::chrono::milliseconds kBetweenReports{20};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Joins, whatever happens.
struct Worker {
  std::thread thread;
  ~Worker() {
    if (thread.joinable()) thread.join();
  }
};

// The program of an exported file, and that its weights are packed for it.
Program checked_program(const Gguf& gguf, const std::vector<OpSpec>& ops, const PackedFile& packed) {
  try {
    Program program(gguf, ops);
    if (!(cpu_packed_identity(program, packed.identity().key) == packed.identity()))
      throw FormatError("packed in another layout: export the model again with this version of glmlite");
    return program;
  } catch (const std::invalid_argument& error) { throw FormatError(std::string("glmlite.program: ") + error.what()); }
}

// Tokens of a context, so many bytes each, beside `fixed` bytes; as glmlite/loading.py has it.
int64_t context_for(int64_t asked, int64_t trained, size_t fixed, size_t per_token, size_t free) {
  if (asked > 0) return std::min(asked, trained);
  int64_t context = std::min(trained, kDefaultContext);
  while (context > kLeastContext && fixed + static_cast<size_t>(context) * per_token > free)
    context = std::max(context / 2, kLeastContext);
  return context;
}

}  // namespace

Hosted::Hosted(const std::string& path, const HostedOptions& options) {
  if (options.threads < 0 || options.threads > 1024)
    throw std::invalid_argument("threads: " + std::to_string(options.threads) + ", expected 1 to 1024, or 0");
  if (options.context < 0) throw std::invalid_argument("context: " + std::to_string(options.context));
  const auto go_on = [&] {
    if (options.progress && !options.progress(0, 1)) throw Cancelled("the load was cancelled");
  };
  go_on();
  const Gguf gguf(path, go_on);
  const auto contents = gguf.contents();
  if (!contents->packed)
    throw FormatError(gguf.where() + ": a GGUF file as it is converted, expected what `glmlite export` makes of it");
  try {
    const Metadata& metadata = contents->metadata;
    const Keys keys(metadata);
    const std::vector<OpSpec> ops = exported_program(metadata);
    const Program program = checked_program(gguf, ops, *contents->packed);
    name = keys.has("general.name") ? keys.text("general.name") : "";
    architecture = keys.text("general.architecture");
    const auto trained = static_cast<int64_t>(keys.integer("glmlite.context", INT32_MAX));
    if (trained < 1) throw FormatError("glmlite.context: is 0");
    const auto names = keys.texts("glmlite.sampling.names");
    const auto values = keys.numbers<double>("glmlite.sampling.values");
    Keys::same_length("glmlite.sampling.values", values.size(), "glmlite.sampling.names", names.size());
    SamplerOptions known;
    for (size_t i = 0; i < names.size(); ++i) {
      try {
        known.set(names[i], values[i]);
        Sampler{known};
      } catch (const std::invalid_argument& error) {
        throw FormatError(std::string("glmlite.sampling: ") + error.what());
      }
      sampling.emplace_back(names[i], values[i]);
    }
    turns_ = std::make_unique<Turns>(metadata, program.vocab);
    prompts_ = std::make_unique<Prompts>(metadata, program.vocab);
    go_on();
    tokenizer_ = std::make_unique<Tokenizer>(metadata);
    go_on();

    const PackedBytes bytes = cpu_weight_bytes(program);
    const size_t page = cpu_page_bytes(program, options.kv_type), free = available_memory();
    context = context_for(options.context, trained, bytes.experts > 0 ? bytes.all - bytes.experts : 0,
                          (page + kPageTokens - 1) / kPageTokens, free);
    if (options.kv_tokens != 0 && options.kv_tokens < context)
      throw std::invalid_argument("kv_tokens: " + std::to_string(options.kv_tokens) + ", a context of " +
                                  std::to_string(context) + " needs at least as many");
    EngineOptions engine;
    engine.threads = options.threads;
    engine.adaptive = true;
    engine.kv_type = options.kv_type;
    engine.kv_tokens = std::max(options.kv_tokens, context);
    engine.packed = contents->packed;
    const size_t cache = static_cast<size_t>(CachePages(program, engine.kv_tokens).total) * page;
    if (bytes.all + cache > free) {
      const size_t kept = free / kReserve + cache;
      engine.weight_room = static_cast<int64_t>(free > kept ? free - kept : 0);
    }
    engine_ = std::make_unique<Engine>(gguf, ops, engine, options.progress);
  } catch (const FormatError& error) { throw FormatError(gguf.where() + ": " + error.what()); }
}

void Hosted::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    if (running_) running_->set = true;
    changed_.notify_all();
  }
  engine_->close();
}

bool Hosted::closed() {
  std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

class Hosted::Turn {
 public:
  Turn(Hosted& model, Session& session, CancelFlag& flag) : model_(model) {
    std::unique_lock<std::mutex> lock(model.mutex_);
    if (model.busy_ && model.runner_ == std::this_thread::get_id())
      throw std::invalid_argument("the model is answering: a callback of it cannot run it");
    for (;;) {
      if (model.closed_) throw Closed("the model is closed");
      if (flag.is_set()) throw Cancelled("cancelled before it began");
      if (!model.busy_) break;
      model.changed_.wait_for(lock, kBetweenReports);
    }
    model.busy_ = true;
    model.runner_ = std::this_thread::get_id();
    model.running_ = &flag;
    model.sessions_.remove(&session);
    model.sessions_.push_back(&session);
  }
  ~Turn() {
    std::lock_guard<std::mutex> lock(model_.mutex_);
    model_.busy_ = false;
    model_.running_ = nullptr;
    model_.changed_.notify_all();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Hosted& model_;
};

// Takes what other sessions hold, the least recently used first, until so many more tokens find room.
void Hosted::make_room(const Session& session, int64_t tokens) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const int sequence : orphans_) engine_->free(sequence);
  orphans_.clear();
  for (Session* other : sessions_) {
    if (engine_->kv_free() >= tokens + 2 * kPageTokens) return;
    if (other == &session || other->sequence_ < 0) continue;
    engine_->free(other->sequence_);
    other->sequence_ = -1;
    other->cached_.clear();
  }
}

Session::Session(std::shared_ptr<Hosted> model) : model_(std::move(model)) {
  std::lock_guard<std::mutex> lock(model_->mutex_);
  if (model_->closed_) throw Closed("the model is closed");
  model_->sessions_.push_back(this);
}

Session::~Session() {
  std::lock_guard<std::mutex> lock(model_->mutex_);
  model_->sessions_.remove(this);
  if (sequence_ < 0 || model_->closed_) return;
  try {
    model_->orphans_.push_back(sequence_);
    if (model_->busy_) return;
    model_->engine_->free(sequence_);
    model_->orphans_.pop_back();
  } catch (const std::exception&) {  // closed meanwhile, or no memory to remember it: `close` frees it
  }
}

Outcome Session::generate(const std::vector<int32_t>& prompt, Wanted wanted) {
  Hosted& m = *model_;
  const auto check = [&](const char* what, const std::vector<int32_t>& ids) {
    for (const int32_t id : ids)
      if (id < 0 || id >= m.info().vocab)
        throw std::invalid_argument(std::string(what) + ": token id " + std::to_string(id) + ", expected 0 to " +
                                    std::to_string(m.info().vocab - 1));
  };
  if (prompt.empty()) throw std::invalid_argument("prompt: is empty, expected at least one token");
  check("prompt", prompt);
  check("stop_ids", wanted.sampling.stop);
  const auto length = static_cast<int64_t>(prompt.size());
  if (length >= m.context)
    throw ContextOverflow("the prompt has " + std::to_string(length) + " tokens and leaves no room in a context of " +
                          std::to_string(m.context));
  const Layout layout = m.prompts().layout(prompt);
  if (!wanted.ignore_ends) {
    const auto add = [&](const std::vector<int32_t>& ids) {
      wanted.sampling.stop.insert(wanted.sampling.stop.end(), ids.begin(), ids.end());
    };
    add(m.tokenizer().ends());
    if (wanted.chat) add(m.turns().ends());
  }
  const int64_t room = m.context - length;
  wanted.max_tokens = wanted.max_tokens > 0 ? std::min(wanted.max_tokens, room) : room;

  Outcome out;
  out.prompt = length;
  CancelFlag flag;
  flag.also = wanted.cancel;
  try {
    const Hosted::Turn turn(m, *this, flag);
    answer(prompt, layout, wanted, flag, &out);
  } catch (const Cancelled&) {
    if (m.closed()) throw Closed("the model was closed while the session ran");
    out.end = End::kCancelled;
  } catch (const std::invalid_argument&) {
    if (m.closed()) throw Closed("the model was closed while the session ran");
    throw;
  }
  return out;
}

std::vector<int32_t> Session::enter(const Work& work, const Wanted& wanted, CancelFlag& flag, const Outcome& out) {
  Engine& engine = *model_->engine_;
  const auto count = static_cast<int64_t>(work.tokens.size());
  const auto done = static_cast<int64_t>(cached_.size());
  model_->make_room(*this, count + work.budget - 1);
  std::vector<std::vector<Sample>> samples;
  if (!wanted.on_progress || out.generated > 0) {
    samples = engine.run({work}, 0, &flag);
  } else {  // on a thread of its own, so that this one can tell how far it is
    std::mutex mutex;
    std::condition_variable changed;
    bool ended = false;
    std::exception_ptr failure;
    Worker worker{std::thread([&] {
      try {
        samples = engine.run({work}, 0, &flag);
      } catch (...) { failure = std::current_exception(); }
      std::lock_guard<std::mutex> lock(mutex);
      ended = true;
      changed.notify_one();
    })};
    std::unique_lock<std::mutex> lock(mutex);
    while (!changed.wait_for(lock, kBetweenReports, [&] { return ended; })) {
      lock.unlock();
      const auto read = static_cast<int64_t>(static_cast<double>(count) * engine.progress());
      if (wanted.on_progress(done + std::min(read, count), out.prompt)) flag.set = true;
      lock.lock();
    }
    lock.unlock();
    worker.thread.join();
    if (failure) std::rethrow_exception(failure);
    if (wanted.on_progress(done + count, out.prompt)) flag.set = true;
  }
  std::vector<int32_t> drawn;
  for (const Sample& sample : samples[0]) drawn.push_back(sample.token);
  cached_.insert(cached_.end(), work.tokens.begin(), work.tokens.end());
  if (!drawn.empty()) cached_.insert(cached_.end(), drawn.begin(), drawn.end() - 1);
  if (flag.is_set()) throw Cancelled("the answer was cancelled");
  return drawn;
}

void Session::answer(const std::vector<int32_t>& prompt, const Layout& layout, Wanted& wanted, CancelFlag& flag,
                     Outcome* out) {
  Hosted& m = *model_;
  Engine& engine = *m.engine_;
  const auto begin = Clock::now();
  const std::unordered_set<int32_t> stops(wanted.sampling.stop.begin(), wanted.sampling.stop.end());
  wanted.sampling.draft = kDraft;
  const auto sampler = std::make_shared<Sampler>(std::move(wanted.sampling));
  sampler->accept(prompt.data(), out->prompt);

  size_t reused = 0;
  if (m.prompts().causal()) {
    const size_t most = std::min(cached_.size(), prompt.size() - 1);
    while (reused < most && cached_[reused] == prompt[reused]) ++reused;
  }
  if (sequence_ < 0) sequence_ = engine.new_sequence();
  engine.truncate(sequence_, static_cast<int64_t>(reused));
  cached_.resize(reused);
  out->reused = static_cast<int64_t>(reused);
  if (wanted.on_progress && wanted.on_progress(out->reused, out->prompt)) flag.set = true;

  std::vector<int32_t> drawn;
  for (int64_t at = out->reused; at < out->prompt;) {
    const bool whole = at == 0 && layout.context > 0;
    const int64_t end = whole ? layout.context : std::min(at + kChunk, out->prompt);
    Work work;
    work.sequence = sequence_;
    work.tokens.assign(prompt.begin() + at, prompt.begin() + end);
    work.positions.assign(layout.positions.begin() + at, layout.positions.begin() + end);
    work.visible = whole ? layout.context : 0;
    if (end == out->prompt) work.sampler = sampler;
    drawn = enter(work, wanted, flag, *out);
    at = end;
  }
  const auto first = Clock::now();
  out->prompt_seconds = std::chrono::duration<double>(first - begin).count();

  TextStream stream(m.tokenizer(), true);
  bool trim = wanted.chat && m.turns().trims();
  const auto tell = [&](int32_t token, std::string text) {
    std::string_view told = text;
    if (trim) {
      told = without_leading_space(told);
      trim = told.empty();
    }
    if (!wanted.on_token || (token < 0 && told.empty())) return false;
    return wanted.on_token(token, told);
  };
  const auto& marks = m.turns().marks();
  const auto text_of = [&](int32_t token) {
    std::string text;
    if (static_cast<size_t>(token) >= m.tokenizer().size()) return text;  // logits may be wider than the vocabulary
    if (wanted.chat && std::find(marks.begin(), marks.end(), token) != marks.end()) {
      stream.finish(text);
      text += m.tokenizer().piece(token);
    } else {
      stream.push(token, text);
    }
    return text;
  };
  // Whether the answer ends with a token.
  const auto ends = [&](int32_t token) {
    if (stops.count(token)) {
      out->end = End::kStop;
      out->stop_token = token;
      std::string rest;
      stream.finish(rest);
      tell(-1, rest);
      return true;
    }
    ++out->generated;
    const bool enough = tell(token, text_of(token));
    out->generation_seconds = seconds_since(first);
    if (enough) out->end = End::kCallback;
    const bool last = out->generated == wanted.max_tokens;
    if (!enough && last) out->end = End::kLength;
    return enough || last;
  };
  const auto position = [&](int64_t generated) {
    Position at{};
    for (int axis = 0; axis < kAxes; ++axis)
      at[axis] = static_cast<int32_t>(layout.next[axis] + generated * layout.step[axis]);
    return at;
  };
  while (std::none_of(drawn.begin(), drawn.end(), ends)) {
    Work work;
    work.sequence = sequence_;
    work.tokens = {drawn.back()};
    work.positions = {position(out->generated - 1)};
    work.next_position = position(out->generated);
    work.position_step = layout.step;
    work.sampler = sampler;
    work.budget = std::min<int64_t>(1 + kDraft, wanted.max_tokens - out->generated);
    drawn = enter(work, wanted, flag, *out);
  }
}

}  // namespace glmlite
