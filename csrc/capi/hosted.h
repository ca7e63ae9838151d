// A model of an exported file, and the sessions that run on it: what a host has without Python.
#pragma once
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine.h"
#include "layout.h"
#include "text/tokenizer.h"
#include "turns.h"

namespace glmlite {

// The model was closed.
struct Closed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// A prompt that leaves no room for an answer.
struct ContextOverflow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct HostedOptions {
  int threads = 0;
  int64_t context = 0, kv_tokens = 0;  // 0: as memory allows, as the context
  KvType kv_type = KvType::kF16;
  LoadProgress progress;
};

class Session;

// Any number of threads may use one; sessions run one after another.
class Hosted {
 public:
  // Throws FileError, FormatError, OutOfMemory, Cancelled, std::invalid_argument (options).
  Hosted(const std::string& path, const HostedOptions& options);

  std::string name, architecture;
  int64_t context = 0;
  std::vector<std::pair<std::string, double>> sampling;  // the model's own options
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const Turns& turns() const { return *turns_; }
  const Prompts& prompts() const { return *prompts_; }
  const Engine::Info& info() const { return engine_->info(); }
  int threads() const { return engine_->threads(); }

  // Ends what runs, and gives the memory back.
  void close();

 private:
  friend class Session;
  // A session's turn: waits for it. Throws Closed, Cancelled; std::invalid_argument from a callback of the model's own.
  class Turn;

  void make_room(const Session& session, int64_t tokens);
  bool closed();

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Turns> turns_;
  std::unique_ptr<Prompts> prompts_;
  std::unique_ptr<Engine> engine_;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool busy_ = false, closed_ = false;
  std::thread::id runner_;
  CancelFlag* running_ = nullptr;  // of the turn
  std::list<Session*> sessions_;   // the least recently used first
  std::vector<int> orphans_;       // sequences of sessions that went while another ran
};

// What a caller asks of an answer.
struct Wanted {
  SamplerOptions sampling;
  int64_t max_tokens = 0;  // 0: as many as fit
  bool chat = false;       // ends and text as a conversation has them
  bool ignore_ends = false;
  std::function<bool(int32_t token, std::string_view text)> on_token;  // true: enough
  std::function<bool(int64_t done, int64_t total)> on_progress;        // true: cancel
  const CancelFlag* cancel = nullptr;
};

enum class End { kStop = 1, kLength, kCallback, kCancelled };

struct Outcome {
  End end = End::kCancelled;
  int32_t stop_token = -1;
  int64_t prompt = 0, reused = 0, generated = 0;
  double prompt_seconds = 0, generation_seconds = 0;
};

// A sequence of tokens that is kept between answers.
class Session {
 public:
  explicit Session(std::shared_ptr<Hosted> model);
  ~Session();

  Hosted& model() const { return *model_; }
  // Throws Closed, ContextOverflow, std::invalid_argument, OutOfMemory, std::runtime_error.
  Outcome generate(const std::vector<int32_t>& prompt, Wanted wanted);

 private:
  friend class Hosted;
  void answer(const std::vector<int32_t>& prompt, const Layout& layout, Wanted& wanted, CancelFlag& flag, Outcome* out);
  // Enters the tokens, and returns those that the work's sampler has drawn then.
  std::vector<int32_t> enter(const Work& work, const Wanted& wanted, CancelFlag& flag, const Outcome& out);

  const std::shared_ptr<Hosted> model_;
  int sequence_ = -1;
  std::vector<int32_t> cached_;  // what the sequence holds
};

}  // namespace glmlite
