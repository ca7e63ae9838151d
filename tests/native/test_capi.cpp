// The C API on a tiny model, for the sanitizers: every error, cancels and closes from other threads, damaged files.
#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "capi/glmlite.h"
#include "check.h"
#include "gguf_bytes.h"

using namespace glmlite;

namespace {

const std::string& bytes_of_model() {
  static const std::string bytes = [] {
    std::ifstream file(GLMLITE_TEST_DATA "/tiny.glmlite", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return bytes;
}

const char* path_of_model() { return GLMLITE_TEST_DATA "/tiny.glmlite"; }

struct Model {
  glmlite_model* handle = nullptr;
  explicit Model(int threads = 2) {
    glmlite_options options{};
    options.size = sizeof options;
    options.threads = threads;
    CHECK(glmlite_open(path_of_model(), &options, &handle, nullptr) == GLMLITE_OK);
  }
  ~Model() { glmlite_close(handle); }
};

struct Session {
  glmlite_session* handle = nullptr;
  explicit Session(const Model& model) { CHECK(glmlite_session_new(model.handle, &handle, nullptr) == GLMLITE_OK); }
  ~Session() { glmlite_session_free(handle); }
};

// What an answer's callbacks do, and what came of it.
struct Job {
  glmlite_params params{};
  glmlite_result result{};
  std::vector<int32_t> prompt, tokens;
  std::string text;
  std::function<int(int32_t)> on_token;
  std::function<int(uint64_t, uint64_t)> on_progress;
  glmlite_error error{};

  explicit Job(const Model& model, int count = 300) {
    params.size = sizeof params;
    CHECK(glmlite_get_params(model.handle, &params, nullptr) == GLMLITE_OK);
    result.size = sizeof result;
    params.seed = 5;
    params.max_tokens = 16;
    params.ignore_eos = 1;
    for (int i = 0; i < count; ++i) prompt.push_back(20 + i * 7 % 200);
  }
  glmlite_status run(glmlite_session* session) {
    params.user = this;
    params.on_token = [](void* user, int32_t token, const char* text, size_t length) {
      Job& job = *static_cast<Job*>(user);
      if (token >= 0) job.tokens.push_back(token);
      job.text.append(text, length);
      return job.on_token ? job.on_token(token) : 0;
    };
    if (on_progress)
      params.on_progress = [](void* user, uint64_t done, uint64_t total) {
        return static_cast<Job*>(user)->on_progress(done, total);
      };
    return glmlite_generate(session, prompt.data(), prompt.size(), &params, &result, &error);
  }
};

std::vector<int32_t> tokens_of(const Model& model) {
  const Session session(model);
  Job job(model);
  CHECK(job.run(session.handle) == GLMLITE_OK && job.result.end == GLMLITE_END_LENGTH);
  return job.tokens;
}

template <class Fn>
void on_another_thread(Fn fn) {
  std::thread(fn).join();
}

}  // namespace

TEST(every_error) {
  const Folder folder;
  const Model model;
  const Session session(model);
  glmlite_error e;
  size_t count = 0;
  int32_t ids[8];
  char text[8];
  const glmlite_message hello{"user", "hello", 5}, no_role{nullptr, "a", 1}, no_text{"user", nullptr, 1},
      tool{"tool", "a", 1}, said{"assistant", "a", 1};
  const int32_t prompt[] = {20, 21}, wrong[] = {20, 320}, negative[] = {-1};
  const std::vector<int32_t> long_prompt(512, 20);
  glmlite_model* opened;
  glmlite_session* made;
  glmlite_info info{};
  info.size = 3;

  const auto open = [&](const char* path, auto change) {
    glmlite_options o{};
    o.size = sizeof o;
    change(o);
    return glmlite_open(path, &o, &opened, &e);
  };
  const auto ask = [&](auto change) {
    glmlite_params p{};
    p.size = sizeof p;
    CHECK(glmlite_get_params(model.handle, &p, &e) == GLMLITE_OK);
    p.max_tokens = 1;
    change(p);
    return glmlite_generate(session.handle, prompt, 2, &p, nullptr, &e);
  };
  const auto none = [](auto&) {};
  struct Longer {  // of a later version
    glmlite_options options{};
    int more[2]{};
  } longer;
  longer.options.size = sizeof longer;
  CHECK(glmlite_open(path_of_model(), &longer.options, &opened, &e) == GLMLITE_OK);
  glmlite_close(opened);
  longer.more[1] = 1;

  const struct {
    const char* what;
    std::function<int()> call;
    int status;
    const char* message;
  } kCases[] = {
      {"open NULL", [&] { return glmlite_open(nullptr, nullptr, &opened, &e); }, GLMLITE_ERROR_ARGUMENT,
       "path: is NULL"},
      {"open to NULL", [&] { return glmlite_open("a", nullptr, nullptr, &e); }, GLMLITE_ERROR_ARGUMENT,
       "model: is NULL"},
      {"no file", [&] { return open((folder.path / "none").u8string().c_str(), none); }, GLMLITE_ERROR_FILE, "none"},
      {"a folder", [&] { return open(folder.path.u8string().c_str(), none); }, GLMLITE_ERROR_FILE, ""},
      {"no GGUF", [&] { return open(folder.write("a", "text").c_str(), none); }, GLMLITE_ERROR_FORMAT,
       "expected 'GGUF'"},
      {"a plain GGUF", [&] { return open(folder.write("b", Builder().bytes()).c_str(), none); }, GLMLITE_ERROR_FORMAT,
       "glmlite export"},
      {"cut", [&] { return open(folder.write("c", bytes_of_model().substr(0, 30000)).c_str(), none); },
       GLMLITE_ERROR_FORMAT, "file ends"},
      {"small options", [&] { return open(path_of_model(), [](auto& o) { o.size = 4; }); }, GLMLITE_ERROR_ARGUMENT,
       "options.size: is 4"},
      {"large options", [&] { return open(path_of_model(), [](auto& o) { o.size = 1 << 20; }); },
       GLMLITE_ERROR_UNSUPPORTED, "does not know"},
      {"later options", [&] { return glmlite_open(path_of_model(), &longer.options, &opened, &e); },
       GLMLITE_ERROR_UNSUPPORTED, "does not know"},
      {"threads", [&] { return open(path_of_model(), [](auto& o) { o.threads = -1; }); }, GLMLITE_ERROR_ARGUMENT,
       "threads"},
      {"many threads", [&] { return open(path_of_model(), [](auto& o) { o.threads = 5000; }); }, GLMLITE_ERROR_ARGUMENT,
       "threads"},
      {"context", [&] { return open(path_of_model(), [](auto& o) { o.context = -1; }); }, GLMLITE_ERROR_ARGUMENT,
       "context"},
      {"kv_q8", [&] { return open(path_of_model(), [](auto& o) { o.kv_q8 = 2; }); }, GLMLITE_ERROR_ARGUMENT, "kv_q8"},
      {"kv_tokens", [&] { return open(path_of_model(), [](auto& o) { o.kv_tokens = 100; }); }, GLMLITE_ERROR_ARGUMENT,
       "needs at least"},
      {"too much memory", [&] { return open(path_of_model(), [](auto& o) { o.kv_tokens = INT32_MAX; }); },
       GLMLITE_ERROR_MEMORY, ""},
      {"load cancelled by progress",
       [&] {
         return open(path_of_model(), [](auto& o) { o.on_progress = [](void*, uint64_t, uint64_t) { return 1; }; });
       },
       GLMLITE_ERROR_CANCELLED, "cancelled"},
      {"info of NULL", [&] { return glmlite_get_info(nullptr, &info, &e); }, GLMLITE_ERROR_ARGUMENT, "model: is NULL"},
      {"info NULL", [&] { return glmlite_get_info(model.handle, nullptr, &e); }, GLMLITE_ERROR_ARGUMENT,
       "info: is NULL"},
      {"info size", [&] { return glmlite_get_info(model.handle, &info, &e); }, GLMLITE_ERROR_ARGUMENT,
       "info.size: is 3"},
      {"tokenize of NULL", [&] { return glmlite_tokenize(nullptr, "a", 1, 0, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "model"},
      {"tokenize NULL", [&] { return glmlite_tokenize(model.handle, nullptr, 1, 0, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "text"},
      {"tokenize how", [&] { return glmlite_tokenize(model.handle, "a", 1, 3, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "how"},
      {"tokenize no count", [&] { return glmlite_tokenize(model.handle, "a", 1, 0, ids, 8, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "count"},
      {"tokenize no room", [&] { return glmlite_tokenize(model.handle, "abc", 3, 0, ids, 1, &count, &e); },
       GLMLITE_ERROR_BUFFER, "expected 3"},
      {"tokenize no buffer", [&] { return glmlite_tokenize(model.handle, "abc", 3, 0, nullptr, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "buffer"},
      {"detokenize of NULL", [&] { return glmlite_detokenize(nullptr, prompt, 2, 0, text, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "model"},
      {"detokenize NULL", [&] { return glmlite_detokenize(model.handle, nullptr, 2, 0, text, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "tokens"},
      {"detokenize how", [&] { return glmlite_detokenize(model.handle, prompt, 2, 2, text, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "how"},
      {"detokenize id", [&] { return glmlite_detokenize(model.handle, wrong, 2, 0, text, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "320"},
      {"detokenize no room", [&] { return glmlite_detokenize(model.handle, prompt, 2, 0, text, 0, &count, &e); },
       GLMLITE_ERROR_BUFFER, "capacity"},
      {"detokenize no count", [&] { return glmlite_detokenize(model.handle, prompt, 2, 0, text, 8, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "count"},
      {"render of NULL", [&] { return glmlite_render(nullptr, &hello, 1, ids, 8, &count, &e); }, GLMLITE_ERROR_ARGUMENT,
       "model"},
      {"render NULL", [&] { return glmlite_render(model.handle, nullptr, 1, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "messages: is NULL"},
      {"render nothing", [&] { return glmlite_render(model.handle, &hello, 0, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "at least one"},
      {"render no count", [&] { return glmlite_render(model.handle, &hello, 1, ids, 8, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "count"},
      {"render no role", [&] { return glmlite_render(model.handle, &no_role, 1, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "role"},
      {"render no text", [&] { return glmlite_render(model.handle, &no_text, 1, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "text"},
      {"render a tool", [&] { return glmlite_render(model.handle, &tool, 1, ids, 8, &count, &e); },
       GLMLITE_ERROR_ARGUMENT, "'tool'"},
      {"render no answer", [&] { return glmlite_render(model.handle, &said, 1, ids, 8, &count, &e); },
       GLMLITE_ERROR_UNSUPPORTED, "the first is of the role 'assistant'"},
      {"render no room", [&] { return glmlite_render(model.handle, &hello, 1, ids, 2, &count, &e); },
       GLMLITE_ERROR_BUFFER, "capacity: is 2"},
      {"session of NULL", [&] { return glmlite_session_new(nullptr, &made, &e); }, GLMLITE_ERROR_ARGUMENT, "model"},
      {"session to NULL", [&] { return glmlite_session_new(model.handle, nullptr, &e); }, GLMLITE_ERROR_ARGUMENT,
       "session"},
      {"params of NULL",
       [&] {
         glmlite_params p{};
         return glmlite_get_params(nullptr, &p, &e);
       },
       GLMLITE_ERROR_ARGUMENT, "model"},
      {"params NULL", [&] { return glmlite_get_params(model.handle, nullptr, &e); }, GLMLITE_ERROR_ARGUMENT, "params"},
      {"params size",
       [&] {
         glmlite_params p{};
         return glmlite_get_params(model.handle, &p, &e);
       },
       GLMLITE_ERROR_ARGUMENT, "params.size: is 0"},
      {"generate of NULL", [&] { return glmlite_generate(nullptr, prompt, 2, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "session"},
      {"generate NULL", [&] { return glmlite_generate(session.handle, nullptr, 2, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "tokens"},
      {"generate nothing", [&] { return glmlite_generate(session.handle, prompt, 0, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "empty"},
      {"generate id", [&] { return glmlite_generate(session.handle, wrong, 2, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "prompt: token id 320"},
      {"generate negative", [&] { return glmlite_generate(session.handle, negative, 1, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "token id -1"},
      {"too long", [&] { return glmlite_generate(session.handle, long_prompt.data(), 512, nullptr, nullptr, &e); },
       GLMLITE_ERROR_CONTEXT, "a context of 512"},
      {"result size",
       [&] {
         glmlite_result r{};
         return glmlite_generate(session.handle, prompt, 2, nullptr, &r, &e);
       },
       GLMLITE_ERROR_ARGUMENT, "result.size"},
      {"small params", [&] { return ask([](auto& p) { p.size = 8; }); }, GLMLITE_ERROR_ARGUMENT, "params.size"},
      {"max_tokens", [&] { return ask([](auto& p) { p.max_tokens = -1; }); }, GLMLITE_ERROR_ARGUMENT, "max_tokens"},
      {"ignore_eos", [&] { return ask([](auto& p) { p.ignore_eos = 7; }); }, GLMLITE_ERROR_ARGUMENT, "ignore_eos"},
      {"temperature", [&] { return ask([](auto& p) { p.temperature = -1; }); }, GLMLITE_ERROR_ARGUMENT, "temperature"},
      {"not a number", [&] { return ask([](auto& p) { p.top_p = 0.0 / 0.0; }); }, GLMLITE_ERROR_ARGUMENT, "top_p"},
      {"top_k", [&] { return ask([](auto& p) { p.top_k = -1; }); }, GLMLITE_ERROR_ARGUMENT, "top_k"},
      {"min_p", [&] { return ask([](auto& p) { p.min_p = 2; }); }, GLMLITE_ERROR_ARGUMENT, "min_p"},
      {"repetition", [&] { return ask([](auto& p) { p.repetition_penalty = 0; }); }, GLMLITE_ERROR_ARGUMENT,
       "repetition"},
      {"window", [&] { return ask([](auto& p) { p.penalty_window = -1; }); }, GLMLITE_ERROR_ARGUMENT, "penalty_window"},
      {"stop NULL", [&] { return ask([](auto& p) { p.stop_count = 1; }); }, GLMLITE_ERROR_ARGUMENT, "stop_ids"},
      {"stop id", [&] { return ask([&](auto& p) { p.stop_ids = wrong, p.stop_count = 2; }); }, GLMLITE_ERROR_ARGUMENT,
       "stop_ids: token id 320"},
      {"chat of NULL", [&] { return glmlite_chat(nullptr, &hello, 1, nullptr, nullptr, &e); }, GLMLITE_ERROR_ARGUMENT,
       "session"},
      {"chat NULL", [&] { return glmlite_chat(session.handle, nullptr, 1, nullptr, nullptr, &e); },
       GLMLITE_ERROR_ARGUMENT, "messages"},
  };
  for (const auto& c : kCases) {
    e = {};
    const int status = c.call();
    check(status == c.status && e.status == status && std::string(e.message).find(c.message) != std::string::npos,
          __FILE__, __LINE__,
          std::string(c.what) + ": status " + std::to_string(status) + ", expected " + std::to_string(c.status) +
              " and '" + c.message + "': " + e.message);
  }
  // Without anywhere to put a message, and of nothing, too.
  CHECK(glmlite_open(nullptr, nullptr, &opened, nullptr) == GLMLITE_ERROR_ARGUMENT);
  glmlite_close(nullptr);
  glmlite_session_free(nullptr);
  glmlite_cancel_set(nullptr);
  glmlite_cancel_free(nullptr);
  // A long message is cut between characters.
  std::string long_path;
  for (int i = 0; i < 1000; ++i) long_path += "\xe4\xbd\xa0";
  CHECK(glmlite_open(long_path.c_str(), nullptr, &opened, &e) == GLMLITE_ERROR_FILE);
  CHECK(std::strlen(e.message) == 1017 && (static_cast<unsigned char>(e.message[1016]) & 0xC0) == 0x80);
  CHECK(std::string(glmlite_version()).find('.') != std::string::npos && glmlite_abi() == GLMLITE_ABI);
  // All that failed has left the session as it was.
  CHECK(tokens_of(model).size() == 16);
}

TEST(threads_and_sessions_do_not_matter) {
  const Model one(1), three(3);
  const auto want = tokens_of(one);
  CHECK(want.size() == 16 && tokens_of(three) == want);
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) equal += tokens_of(three) == want;
    });
  for (auto& thread : threads) thread.join();
  CHECK(equal == 20);
}

TEST(a_session_goes_on) {
  const Model model;
  const Session session(model);
  Job whole(model);
  CHECK(whole.run(session.handle) == GLMLITE_OK && whole.result.reused_tokens == 0);
  Job more(model);
  more.prompt = whole.prompt;
  more.prompt.insert(more.prompt.end(), whole.tokens.begin(), whole.tokens.end());
  CHECK(more.run(session.handle) == GLMLITE_OK && more.result.reused_tokens == 315);
  const Session fresh(model);
  Job again(model);
  again.prompt = more.prompt;
  CHECK(again.run(fresh.handle) == GLMLITE_OK && again.result.reused_tokens == 0 && again.tokens == more.tokens);
  CHECK(again.text == more.text);
}

TEST(cancelled_by_another_thread) {
  const Model model;
  const auto want = tokens_of(model);
  const Session session(model);
  for (const bool reading : {true, false}) {
    glmlite_cancel* cancel = glmlite_cancel_new();
    Job job(model);
    job.params.cancel = cancel;
    const auto press = [&] { on_another_thread([&] { glmlite_cancel_set(cancel); }); };
    if (reading) {
      job.on_progress = [&](uint64_t done, uint64_t) { return done < 100 ? press(), 0 : 0; };
    } else {
      job.on_token = [&](int32_t) { return job.tokens.size() == 3 ? press(), 0 : 0; };
    }
    CHECK(job.run(session.handle) == GLMLITE_OK && job.result.end == GLMLITE_END_CANCELLED);
    CHECK(job.tokens.size() == (reading ? 0 : 3));
    glmlite_options options{};
    options.size = sizeof options;
    options.cancel = cancel;  // as it is set already, a load does not begin
    glmlite_model* none = model.handle;
    CHECK(glmlite_open(path_of_model(), &options, &none, nullptr) == GLMLITE_ERROR_CANCELLED && none == nullptr);
    glmlite_cancel_free(cancel);
    Job after(model);
    CHECK(after.run(session.handle) == GLMLITE_OK && after.tokens == want);
  }
  // At any moment.
  for (int i = 0; i < 20; ++i) {
    glmlite_cancel* cancel = glmlite_cancel_new();
    Job job(model);
    job.params.cancel = cancel;
    job.prompt[0] = 30 + i;
    if (i % 2) job.on_progress = [](uint64_t, uint64_t) { return 0; };
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
      glmlite_cancel_set(cancel);
    });
    CHECK(job.run(session.handle) == GLMLITE_OK);
    other.join();
    CHECK((job.result.end == GLMLITE_END_CANCELLED) == (job.tokens.size() < 16));
    glmlite_cancel_free(cancel);
  }
}

TEST(a_waiting_call_is_cancelled) {
  const Model model;
  const Session first(model), second(model);
  glmlite_cancel* cancel = glmlite_cancel_new();
  Job job(model), waiting(model);
  waiting.params.cancel = cancel;
  job.on_token = [&](int32_t) {
    if (job.tokens.size() > 1) return 0;
    std::thread other([&] { CHECK(waiting.run(second.handle) == GLMLITE_OK); });
    glmlite_cancel_set(cancel);
    other.join();
    return 0;
  };
  CHECK(job.run(first.handle) == GLMLITE_OK && job.tokens.size() == 16);
  CHECK(waiting.result.end == GLMLITE_END_CANCELLED && waiting.tokens.empty());
  glmlite_cancel_free(cancel);
}

TEST(a_callback_cannot_run_its_model) {
  const Model model;
  const Session session(model), other(model);
  Job job(model), inner(model);
  size_t count = 0;
  job.on_token = [&](int32_t) {
    CHECK(inner.run(other.handle) == GLMLITE_ERROR_ARGUMENT);
    CHECK(std::string(inner.error.message).find("callback") != std::string::npos);
    int32_t ids[8];
    CHECK(glmlite_tokenize(model.handle, "ab", 2, GLMLITE_PLAIN, ids, 8, &count, nullptr) == GLMLITE_OK);
    return 1;
  };
  CHECK(job.run(session.handle) == GLMLITE_OK && job.result.end == GLMLITE_END_CALLBACK && count == 2);
}

TEST(what_a_callback_throws_does_not_get_out) {
  const Model model;
  const Session session(model);
  for (const bool reading : {false, true}) {
    Job job(model);
    if (reading) {
      job.on_progress = [](uint64_t done, uint64_t) -> int { return done > 0 ? throw std::runtime_error("mine") : 0; };
    } else {
      job.on_token = [](int32_t) -> int { throw 1; };
    }
    CHECK(job.run(session.handle) == GLMLITE_ERROR_FAILED);
    CHECK(std::string(job.error.message).find(reading ? "mine" : "callback") != std::string::npos);
  }
  CHECK(tokens_of(model).size() == 16);
}

TEST(closed_while_sessions_live) {
  for (const int how : {0, 1, 2, 3}) {
    auto* model = new Model;
    const auto session = std::make_unique<Session>(*model), idle = std::make_unique<Session>(*model);
    Job job(*model), late(*model);
    const auto close = [&] {
      delete model;
      return 0;
    };
    bool closed = false;
    if (how == 0) {
      close();
    } else if (how == 1) {  // by its own callback
      job.on_token = [&](int32_t) { return closed ? 0 : (closed = true, close()); };
    } else if (how == 2) {  // while it reads
      job.on_progress = [&](uint64_t, uint64_t) { return closed ? 0 : (closed = true, on_another_thread(close), 0); };
    } else {  // while it writes
      job.on_token = [&](int32_t) { return closed ? 0 : (closed = true, on_another_thread(close), 0); };
    }
    CHECK(job.run(session->handle) == GLMLITE_ERROR_CLOSED);
    CHECK(std::string(job.error.message).find("closed") != std::string::npos);
    CHECK(late.run(idle->handle) == GLMLITE_ERROR_CLOSED);
    CHECK(job.tokens.size() == (how == 1 || how == 3 ? 1 : 0));
  }
  for (int i = 0; i < 10; ++i) {  // at any moment
    auto* model = new Model;
    Session session(*model);
    Job job(*model);
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(500 * i));
      delete model;
    });
    const int status = job.run(session.handle);
    CHECK(status == GLMLITE_OK || status == GLMLITE_ERROR_CLOSED);
    other.join();
  }
}

TEST(sessions_go_while_others_run) {
  const Model model;
  const Session session(model);
  auto other = std::make_unique<Session>(model);
  Job job(model), of_other(model);
  CHECK(of_other.run(other->handle) == GLMLITE_OK);
  job.on_token = [&](int32_t) { return other.reset(), 0; };
  CHECK(job.run(session.handle) == GLMLITE_OK && job.tokens.size() == 16);
  CHECK(tokens_of(model) == job.tokens);
}

TEST(a_chat) {
  const Model model;
  const Session session(model);
  std::vector<glmlite_message> talk{{"user", "hello", 5}};
  std::vector<int32_t> ids(64);
  size_t count = 0;
  CHECK(glmlite_render(model.handle, talk.data(), 1, ids.data(), 64, &count, nullptr) == GLMLITE_OK && count > 5);
  Job job(model), chat(model);
  job.prompt.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
  CHECK(job.run(session.handle) == GLMLITE_OK);
  chat.params.on_token = job.params.on_token;
  chat.params.user = &chat;
  CHECK(glmlite_chat(session.handle, talk.data(), 1, &chat.params, &chat.result, nullptr) == GLMLITE_OK);
  CHECK(chat.tokens == job.tokens && chat.result.reused_tokens == static_cast<int32_t>(count) - 1);
}

// A file of any bytes is refused, or runs.
TEST(damaged_files) {
  const Folder folder;
  std::mt19937 random(3);
  const size_t header = bytes_of_model().find("glmlite.packed.names") + 20000 < bytes_of_model().size() ? 20480 : 4096;
  const char* given = std::getenv("GLMLITE_DAMAGE");
  int opened = 0;
  for (int i = 0; i < (given ? std::atoi(given) : 300); ++i) {
    std::string bytes = bytes_of_model();
    for (int k = 0; k <= i % 4; ++k) {
      char& byte = bytes[random() % header];
      byte = static_cast<char>(random() % 3 ? byte ^ (1 << random() % 8) : random());
    }
    if (i % 16 == 0) bytes.resize(random() % bytes.size());
    const std::string path = folder.write("damaged", bytes);
    glmlite_error error{};
    glmlite_options options{};
    options.size = sizeof options;
    options.threads = 1;
    options.context = 64;
    Model model(1);
    glmlite_close(model.handle);
    model.handle = nullptr;
    const int status = glmlite_open(path.c_str(), &options, &model.handle, &error);
    CHECK((status == GLMLITE_OK) == (model.handle != nullptr) && (status == 0 || error.message[0] != 0));
    if (status != GLMLITE_OK) continue;
    ++opened;
    int32_t ids[256];
    size_t count = 0;
    const glmlite_message hello{"user", "hello <|im_end|>", 16};
    glmlite_tokenize(model.handle, "hello the <|im_end|>\n", 21, GLMLITE_PROMPT, ids, 256, &count, nullptr);
    const Session session(model);
    Job job(model, 20);
    job.params.max_tokens = 4;
    job.run(session.handle);
    glmlite_chat(session.handle, &hello, 1, &job.params, nullptr, nullptr);
  }
  std::printf("damaged: %d ran\n", opened);
}

RUN_TESTS()
