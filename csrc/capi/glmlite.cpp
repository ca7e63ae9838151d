// The C API over Hosted and Session: arguments are checked, and exceptions become codes, here and nowhere else.
#include "glmlite.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "cpu/this_thread.h"
#include "errors.h"
#include "hosted.h"
#include "memory.h"

using namespace glmlite;

struct glmlite_model {
  std::shared_ptr<Hosted> hosted;
  int64_t process;
};

struct glmlite_session {
  std::unique_ptr<Session> session;
  int64_t process;
};

struct glmlite_cancel {
  CancelFlag flag;
};

namespace {

// A code that no exception of the engine has.
struct Failure : std::runtime_error {
  Failure(glmlite_status status, const std::string& what) : std::runtime_error(what), status(status) {}
  glmlite_status status;
};

glmlite_status fail(glmlite_error* error, glmlite_status status, const char* what) noexcept {
  if (error == nullptr) return status;
  error->status = status;
  size_t length = std::strlen(what);
  if (length >= sizeof error->message) {
    length = sizeof error->message - 1;
    while (length > 0 && (what[length] & 0xC0) == 0x80) --length;  // not within a character
  }
  std::memcpy(error->message, what, length);
  error->message[length] = 0;
  return status;
}

template <class Fn>
glmlite_status guarded(glmlite_error* error, Fn fn) noexcept {
  try {
    fn();
    return GLMLITE_OK;
  } catch (const Failure& e) { return fail(error, e.status, e.what()); } catch (const FileError& e) {
    return fail(error, e.error == ENOMEM ? GLMLITE_ERROR_MEMORY : GLMLITE_ERROR_FILE, e.what());
  } catch (const FormatError& e) { return fail(error, GLMLITE_ERROR_FORMAT, e.what()); } catch (const Cancelled& e) {
    return fail(error, GLMLITE_ERROR_CANCELLED, e.what());
  } catch (const Closed& e) { return fail(error, GLMLITE_ERROR_CLOSED, e.what()); } catch (const ContextOverflow& e) {
    return fail(error, GLMLITE_ERROR_CONTEXT, e.what());
  } catch (const std::domain_error& e) {
    return fail(error, GLMLITE_ERROR_UNSUPPORTED, e.what());
  } catch (const std::invalid_argument& e) {
    return fail(error, GLMLITE_ERROR_ARGUMENT, e.what());
  } catch (const std::bad_alloc& e) {
    return fail(error, GLMLITE_ERROR_MEMORY, e.what());
  } catch (const std::exception& e) { return fail(error, GLMLITE_ERROR_FAILED, e.what()); } catch (...) {
    return fail(error, GLMLITE_ERROR_FAILED, "an exception of a callback's");
  }
}

void need(const void* pointer, const char* name) {
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + ": is NULL");
}

// What is given as a struct of any version: its known part. Later versions are longer; what this one does not know must
// be zero.
template <class T>
T read_struct(const T* given, const char* name) {
  size_t size;
  std::memcpy(&size, given, sizeof size);
  if (size < sizeof(T))  // the first version's size, as long as there is no other
    throw std::invalid_argument(std::string(name) + ".size: is " + std::to_string(size) + ", expected " +
                                std::to_string(sizeof(T)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (size > (size_t{1} << 16) || std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char b) { return b != 0; }))
    throw Failure(GLMLITE_ERROR_UNSUPPORTED,
                  std::string(name) + ": asks for what this version, glmlite " GLMLITE_VERSION ", does not know");
  return *given;
}

// Fills a caller's struct of any version.
template <class T>
void write_struct(T* out, const char* name, T value) {
  size_t size;
  std::memcpy(&size, out, sizeof size);
  if (size < sizeof(T) || size > (size_t{1} << 16))
    throw std::invalid_argument(std::string(name) + ".size: is " + std::to_string(size) + ", expected " +
                                std::to_string(sizeof(T)));
  value.size = size;
  std::memset(static_cast<void*>(out), 0, size);
  std::memcpy(static_cast<void*>(out), &value, sizeof value);
}

void same_process(int64_t process) {
  if (process != this_process())
    throw Failure(GLMLITE_ERROR_FAILED, "the model was opened before this process was forked: open it anew");
}

Hosted& hosted(const glmlite_model* model) {
  need(model, "model");
  same_process(model->process);
  return *model->hosted;
}

Session& session_of(const glmlite_session* session) {
  need(session, "session");
  same_process(session->process);
  return *session->session;
}

int checked(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    throw std::invalid_argument(std::string(name) + ": is " + std::to_string(value) + ", expected " +
                                std::to_string(low) + " to " + std::to_string(high));
  return static_cast<int>(value);
}

std::string_view text_of(const char* text, size_t length, const char* name) {
  if (length > 0) need(text, name);
  return length > 0 ? std::string_view(text, length) : std::string_view();
}

std::vector<int32_t> ids_of(const int32_t* ids, size_t count, const char* name) {
  if (count > 0) need(ids, name);
  return count > 0 ? std::vector<int32_t>(ids, ids + count) : std::vector<int32_t>();
}

template <class Values, class T>
void give(const Values& values, T* to, size_t capacity, size_t* count) {
  *count = values.size();
  if (values.size() > capacity)
    throw Failure(GLMLITE_ERROR_BUFFER,
                  "capacity: is " + std::to_string(capacity) + ", expected " + std::to_string(values.size()));
  if (!values.empty()) {
    need(to, "the buffer");
    std::copy(values.begin(), values.end(), to);
  }
}

std::vector<Message> messages_of(const glmlite_message* messages, size_t count) {
  if (count > 0) need(messages, "messages");
  std::vector<Message> all;
  for (size_t i = 0; i < count; ++i) {
    need(messages[i].role, "messages.role");
    all.push_back({messages[i].role, text_of(messages[i].text, messages[i].length, "messages.text")});
  }
  return all;
}

// fn(name, field) for each sampling option that the struct has.
template <class Params, class Fn>
void each_option(Params& p, Fn fn) {
  fn("temperature", p.temperature);
  fn("top_k", p.top_k);
  fn("top_p", p.top_p);
  fn("min_p", p.min_p);
  fn("repetition_penalty", p.repetition_penalty);
  fn("presence_penalty", p.presence_penalty);
  fn("frequency_penalty", p.frequency_penalty);
  fn("penalty_window", p.penalty_window);
}

glmlite_params params_of(const Hosted& model) {
  glmlite_params p{};
  p.size = sizeof p;
  std::random_device random;
  p.seed = uint64_t{random()} << 32 | random();
  each_option(p, [&](const std::string& name, auto& field) {
    const auto take = [&](double value) { field = static_cast<std::decay_t<decltype(field)>>(value); };
    for (const SamplingOption& option : sampling_options())
      if (name == option.name) take(option.usual);
    for (const auto& [own, value] : model.sampling)
      if (name == own) take(value);
  });
  return p;
}

Wanted wanted_of(const glmlite_params& p) {
  Wanted w;
  SamplerOptions& o = w.sampling;
  each_option(p, [&](const char* name, double value) { o.set(name, value); });
  o.seed = p.seed;
  o.stop = ids_of(p.stop_ids, p.stop_count, "params.stop_ids");
  w.max_tokens = checked("max_tokens", p.max_tokens, 0, INT32_MAX);
  w.ignore_ends = checked("ignore_eos", p.ignore_eos, 0, 1) != 0;
  if (p.on_token)
    w.on_token = [p](int32_t token, std::string_view text) {
      return p.on_token(p.user, token, text.empty() ? "" : text.data(), text.size()) != 0;
    };
  if (p.on_progress)
    w.on_progress = [p](int64_t done, int64_t total) {
      return p.on_progress(p.user, static_cast<uint64_t>(done), static_cast<uint64_t>(total)) != 0;
    };
  w.cancel = p.cancel ? &p.cancel->flag : nullptr;
  return w;
}

void generate(Session& session, const std::vector<int32_t>& prompt, bool chat, const glmlite_params* params,
              glmlite_result* result) {
  glmlite_result told{};
  if (result != nullptr) write_struct(result, "result", told);  // a size that is wrong is said before the work
  Wanted wanted = wanted_of(params ? read_struct(params, "params") : params_of(session.model()));
  wanted.chat = chat;
  const Outcome out = session.generate(prompt, std::move(wanted));
  if (result == nullptr) return;
  told.end = static_cast<int32_t>(out.end);
  told.stop_token = out.stop_token;
  told.prompt_tokens = static_cast<int32_t>(out.prompt);
  told.reused_tokens = static_cast<int32_t>(out.reused);
  told.generated_tokens = static_cast<int32_t>(out.generated);
  told.prompt_seconds = out.prompt_seconds;
  told.generation_seconds = out.generation_seconds;
  write_struct(result, "result", told);
}

}  // namespace

const char* glmlite_version(void) { return GLMLITE_VERSION; }
uint32_t glmlite_abi(void) { return GLMLITE_ABI; }

glmlite_cancel* glmlite_cancel_new(void) { return new (std::nothrow) glmlite_cancel; }
void glmlite_cancel_set(glmlite_cancel* cancel) {
  if (cancel != nullptr) cancel->flag.set = true;
}
void glmlite_cancel_free(glmlite_cancel* cancel) { delete cancel; }

glmlite_status glmlite_open(const char* path, const glmlite_options* options, glmlite_model** model,
                            glmlite_error* error) {
  return guarded(error, [&] {
    need(model, "model");
    *model = nullptr;
    need(path, "path");
    const glmlite_options given = options ? read_struct(options, "options") : glmlite_options{};
    HostedOptions o;
    o.threads = checked("threads", given.threads, 0, 1024);
    o.context = checked("context", given.context, 0, INT32_MAX);
    o.kv_tokens = checked("kv_tokens", given.kv_tokens, 0, INT32_MAX);
    o.kv_type = checked("kv_q8", given.kv_q8, 0, 1) ? KvType::kQ8 : KvType::kF16;
    o.progress = [&given](uint64_t done, uint64_t total) {
      if (given.cancel && given.cancel->flag.is_set()) return false;
      return !given.on_progress || given.on_progress(given.user, done, total) == 0;
    };
    *model = new glmlite_model{std::make_shared<Hosted>(path, o), this_process()};
  });
}

void glmlite_close(glmlite_model* model) {
  if (model == nullptr || model->process != this_process()) return;  // its threads are not here to be joined
  guarded(nullptr, [&] { model->hosted->close(); });
  delete model;
}

glmlite_status glmlite_get_info(const glmlite_model* model, glmlite_info* info, glmlite_error* error) {
  return guarded(error, [&] {
    const Hosted& m = hosted(model);
    need(info, "info");
    glmlite_info told{};
    told.name = m.name.c_str();
    told.architecture = m.architecture.c_str();
    told.vocabulary = static_cast<int32_t>(m.info().vocab);
    told.context = static_cast<int32_t>(m.context);
    told.threads = m.threads();
    told.chats = m.turns().refused().empty();
    told.weight_bytes = m.info().weight_bytes;
    told.kv_bytes = m.info().kv_bytes;
    write_struct(info, "info", told);
  });
}

glmlite_status glmlite_tokenize(const glmlite_model* model, const char* text, size_t length, int how, int32_t* tokens,
                                size_t capacity, size_t* count, glmlite_error* error) {
  return guarded(error, [&] {
    const Hosted& m = hosted(model);
    need(count, "count");
    checked("how", how, GLMLITE_PLAIN, GLMLITE_PROMPT);
    std::vector<int32_t> ids;
    m.tokenizer().encode(text_of(text, length, "text"), how != GLMLITE_PLAIN, ids);
    if (how == GLMLITE_PROMPT) ids = m.prompts().prompt(m.tokenizer(), std::move(ids));
    give(ids, tokens, capacity, count);
  });
}

glmlite_status glmlite_detokenize(const glmlite_model* model, const int32_t* tokens, size_t token_count, int how,
                                  char* text, size_t capacity, size_t* count, glmlite_error* error) {
  return guarded(error, [&] {
    const Hosted& m = hosted(model);
    need(count, "count");
    checked("how", how, GLMLITE_PLAIN, GLMLITE_SPECIAL);
    TextStream stream(m.tokenizer(), how == GLMLITE_PLAIN);
    std::string all;
    for (const int32_t id : ids_of(tokens, token_count, "tokens")) stream.push(id, all);
    stream.finish(all);
    give(all, text, capacity, count);
  });
}

glmlite_status glmlite_render(const glmlite_model* model, const glmlite_message* messages, size_t message_count,
                              int32_t* tokens, size_t capacity, size_t* count, glmlite_error* error) {
  return guarded(error, [&] {
    const Hosted& m = hosted(model);
    need(count, "count");
    give(m.turns().render(m.tokenizer(), messages_of(messages, message_count)), tokens, capacity, count);
  });
}

glmlite_status glmlite_session_new(glmlite_model* model, glmlite_session** session, glmlite_error* error) {
  return guarded(error, [&] {
    need(session, "session");
    *session = nullptr;
    hosted(model);
    *session = new glmlite_session{std::make_unique<Session>(model->hosted), model->process};
  });
}

void glmlite_session_free(glmlite_session* session) {
  if (session == nullptr || session->process != this_process()) return;  // as for glmlite_close
  delete session;
}

glmlite_status glmlite_get_params(const glmlite_model* model, glmlite_params* params, glmlite_error* error) {
  return guarded(error, [&] {
    const Hosted& m = hosted(model);
    need(params, "params");
    write_struct(params, "params", params_of(m));
  });
}

glmlite_status glmlite_generate(glmlite_session* session, const int32_t* tokens, size_t token_count,
                                const glmlite_params* params, glmlite_result* result, glmlite_error* error) {
  return guarded(error, [&] {
    Session& s = session_of(session);
    generate(s, ids_of(tokens, token_count, "tokens"), false, params, result);
  });
}

glmlite_status glmlite_chat(glmlite_session* session, const glmlite_message* messages, size_t message_count,
                            const glmlite_params* params, glmlite_result* result, glmlite_error* error) {
  return guarded(error, [&] {
    Session& s = session_of(session);
    const Hosted& m = s.model();
    generate(s, m.turns().render(m.tokenizer(), messages_of(messages, message_count)), true, params, result);
  });
}
