/* glmlite in C: runs models that `glmlite export MODEL.gguf` has written. docs/c-api.md has a whole example.
 *
 * Every function that can fail returns a glmlite_status and, where `error` is not NULL, says in it what is wrong. None
 * ends the process, prints, or lets an exception out. NULL where something is needed is GLMLITE_ERROR_ARGUMENT.
 *
 * Threads: any thread may call anything at any time, but for four rules. A handle is closed or freed by one thread
 * while no other calls something with that handle; a session may outlive its model, and be in a call when that is
 * closed. The sessions of a model run one after another: a call waits for its turn. A callback is called by the thread
 * that made the call; it must not free what that call was given, and must not run the same model. After fork() a child
 * opens its models anew.
 *
 * Text is UTF-8, paths too on Windows; elsewhere they are the system's bytes. Text that goes in has a length: no NUL
 * ends it.
 *
 * Versions: what is here stays as it is for GLMLITE_ABI. Structs begin with their size, so that later versions may make
 * them longer: `glmlite_options options = {sizeof options};`, the rest zero, means the defaults. */
#ifndef GLMLITE_H
#define GLMLITE_H

#include <stddef.h>
#include <stdint.h>

#define GLMLITE_ABI 1

#if defined(GLMLITE_STATIC)
#define GLMLITE_API
#elif defined(_WIN32)
#if defined(GLMLITE_BUILD)
#define GLMLITE_API __declspec(dllexport)
#else
#define GLMLITE_API __declspec(dllimport)
#endif
#else
#define GLMLITE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum glmlite_status {
  GLMLITE_OK = 0,
  GLMLITE_ERROR_ARGUMENT = 1, /* the call is wrong */
  GLMLITE_ERROR_FILE = 2,     /* the system refuses the file */
  GLMLITE_ERROR_FORMAT = 3,   /* the file is not what it should be */
  GLMLITE_ERROR_MEMORY = 4,
  GLMLITE_ERROR_CANCELLED = 5,   /* the load was; an answer that was ends with GLMLITE_END_CANCELLED */
  GLMLITE_ERROR_CLOSED = 6,      /* the session's model was closed, before the call or while it ran */
  GLMLITE_ERROR_CONTEXT = 7,     /* the prompt leaves no room in the context */
  GLMLITE_ERROR_BUFFER = 8,      /* the buffer is too small: the count says what is needed */
  GLMLITE_ERROR_UNSUPPORTED = 9, /* the model cannot, or this version does not know what is asked for */
  GLMLITE_ERROR_FAILED = 10      /* anything else */
} glmlite_status;

/* What went wrong, filled by a call that does not return GLMLITE_OK. */
typedef struct glmlite_error {
  int32_t status;
  char message[1020]; /* "what: what it is, what it should be", cut between characters if it is longer */
} glmlite_error;

typedef struct glmlite_model glmlite_model;
typedef struct glmlite_session glmlite_session;
typedef struct glmlite_cancel glmlite_cancel;

/* done of total, called at the beginning, and every 20 ms or so. Anything but 0 cancels. */
typedef int (*glmlite_on_progress)(void* user, uint64_t done, uint64_t total);

/* A token that was written, and the text that is certain with it: whole characters, not ended by a NUL, maybe none. At
 * the end there may be a last call with token -1, for text that was held back. Anything but 0 ends the answer there. */
typedef int (*glmlite_on_token)(void* user, int32_t token, const char* text, size_t length);

/* "1.2.3", of the library. */
GLMLITE_API const char* glmlite_version(void);
/* GLMLITE_ABI as the library was built: compare it with yours. */
GLMLITE_API uint32_t glmlite_abi(void);

/* ---- cancelling: one object ends the calls that it is given to, those that run and those that begin later */

/* NULL: there is no memory. */
GLMLITE_API glmlite_cancel* glmlite_cancel_new(void);
/* From any thread, at any time, also from a signal handler. Work ends within a millisecond or so. */
GLMLITE_API void glmlite_cancel_set(glmlite_cancel* cancel);
/* After the calls that it was given to have returned. */
GLMLITE_API void glmlite_cancel_free(glmlite_cancel* cancel);

/* ---- models */

typedef struct glmlite_options {
  size_t size;
  int32_t threads;   /* to compute with; 0: the physical cores */
  int32_t context;   /* tokens of a prompt and its answer, at most what it was made for; 0: 4096, or as memory allows */
  int32_t kv_q8;     /* 1: keys and values in 8 bits, half the memory of 16 */
  int32_t kv_tokens; /* room of the cache that all sessions share; 0: as the context */
  glmlite_on_progress on_progress; /* of the load, or NULL */
  void* user;                      /* given to it */
  const glmlite_cancel* cancel;    /* ends the load, or NULL */
} glmlite_options;

/* options: NULL for the defaults. Weights are mapped: processes share them, and the file must stay as it is. */
GLMLITE_API glmlite_status glmlite_open(const char* path, const glmlite_options* options, glmlite_model** model,
                                        glmlite_error* error);
/* Gives the memory back. Calls of its sessions that run end with GLMLITE_ERROR_CLOSED; free the sessions, too. */
GLMLITE_API void glmlite_close(glmlite_model* model);

typedef struct glmlite_info {
  size_t size;
  const char* name; /* these two live as long as the model */
  const char* architecture;
  int32_t vocabulary; /* token ids are below */
  int32_t context;
  int32_t threads;
  int32_t chats; /* 1: glmlite_chat and glmlite_render are for this model */
  uint64_t weight_bytes, kv_bytes;
} glmlite_info;

/* Fills as much of `info` as its size says. */
GLMLITE_API glmlite_status glmlite_get_info(const glmlite_model* model, glmlite_info* info, glmlite_error* error);

/* ---- text and tokens. Results go into `tokens` or `text`, which has room for `capacity`; `count` gets how many there
 * are, also where they do not fit: GLMLITE_ERROR_BUFFER. So ask with a capacity of 0 first, or guess and repeat. */

enum {
  GLMLITE_PLAIN = 0,   /* special tokens spelled in the text are text */
  GLMLITE_SPECIAL = 1, /* they are those tokens */
  GLMLITE_PROMPT = 2   /* so they are, and the text is made a prompt: with what the model wants around it, once */
};

GLMLITE_API glmlite_status glmlite_tokenize(const glmlite_model* model, const char* text, size_t length, int how,
                                            int32_t* tokens, size_t capacity, size_t* count, glmlite_error* error);
/* The text has special tokens if `how` is GLMLITE_SPECIAL. */
GLMLITE_API glmlite_status glmlite_detokenize(const glmlite_model* model, const int32_t* tokens, size_t token_count,
                                              int how, char* text, size_t capacity, size_t* count,
                                              glmlite_error* error);

typedef struct glmlite_message {
  const char* role; /* "system", "user" or "assistant", ended by a NUL */
  const char* text;
  size_t length;
} glmlite_message;

/* The prompt of a conversation, up to where the answer begins. Control tokens spelled in messages are text. */
GLMLITE_API glmlite_status glmlite_render(const glmlite_model* model, const glmlite_message* messages,
                                          size_t message_count, int32_t* tokens, size_t capacity, size_t* count,
                                          glmlite_error* error);

/* ---- answers */

/* A session keeps what it has read and written, so a prompt that begins like the one before costs only what is new. */
GLMLITE_API glmlite_status glmlite_session_new(glmlite_model* model, glmlite_session** session, glmlite_error* error);
GLMLITE_API void glmlite_session_free(glmlite_session* session);

typedef struct glmlite_params {
  size_t size;
  int32_t max_tokens;        /* 0: until the model stops or the context is full */
  int32_t ignore_eos;        /* 1: the model's own end tokens do not end it */
  uint64_t seed;             /* fixes the answer, as in Python, for any number of threads and on every machine */
  double temperature;        /* 0: the most likely token */
  double top_p;              /* 1: off */
  double min_p;              /* 0: off */
  double repetition_penalty; /* 1: off */
  double presence_penalty, frequency_penalty;
  int32_t top_k;           /* 0: off */
  int32_t penalty_window;  /* tokens that penalties look back */
  const int32_t* stop_ids; /* tokens that end it besides the model's own */
  size_t stop_count;
  glmlite_on_token on_token;       /* or NULL; and likewise */
  glmlite_on_progress on_progress; /* of the prompt, in tokens */
  void* user;                      /* given to both */
  const glmlite_cancel* cancel;    /* ends it */
} glmlite_params;

/* The model's own parameters, a random seed, and no callbacks. Set params->size first. */
GLMLITE_API glmlite_status glmlite_get_params(const glmlite_model* model, glmlite_params* params, glmlite_error* error);

typedef enum glmlite_end {
  GLMLITE_END_STOP = 1,     /* an end token */
  GLMLITE_END_LENGTH = 2,   /* max_tokens, or the context is full */
  GLMLITE_END_CALLBACK = 3, /* on_token said so */
  GLMLITE_END_CANCELLED = 4
} glmlite_end;

typedef struct glmlite_result {
  size_t size;
  int32_t end;                          /* a glmlite_end */
  int32_t stop_token;                   /* the end token, which is no part of the answer, or -1 */
  int32_t prompt_tokens, reused_tokens; /* reused: of the prompt, not read because the session had them */
  int32_t generated_tokens;
  int32_t reserved;
  double prompt_seconds, generation_seconds; /* to the first token, and from there */
} glmlite_result;

/* Goes on with a prompt of token ids. params: NULL for those of glmlite_get_params. result: or NULL; set its size. */
GLMLITE_API glmlite_status glmlite_generate(glmlite_session* session, const int32_t* tokens, size_t token_count,
                                            const glmlite_params* params, glmlite_result* result, glmlite_error* error);
/* Answers a conversation: what glmlite_render makes of it, with the end tokens of a chat, and without the white space
 * that a model may begin with. For the next turn, add the answer and the next message, and call it again. */
GLMLITE_API glmlite_status glmlite_chat(glmlite_session* session, const glmlite_message* messages, size_t message_count,
                                        const glmlite_params* params, glmlite_result* result, glmlite_error* error);

#ifdef __cplusplus
}
#endif

#endif
