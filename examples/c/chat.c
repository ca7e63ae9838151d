/* A chat in a terminal: each line of the input is a question; Ctrl-C stops an answer.
 *
 *     glmlite export model.gguf -o model.glmlite
 *     cc chat.c -I ../../csrc/capi -L ../../build-c -lglmlite -Wl,-rpath,../../build-c -o chat
 *     ./chat model.glmlite [SEED] [ids]          ids: print token ids instead of text
 */
#include <glmlite.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 100, LINE = 4096, PROMPT = 8192 };

static glmlite_cancel* volatile cancel; /* of the answer that is being written, or NULL */
static struct { char* text; size_t length; } answer;
static int ids;

static void interrupted(int signal) { (void)signal; glmlite_cancel_set(cancel); } /* which NULL may be */

static int on_token(void* user, int32_t token, const char* text, size_t length) {
  char* grown = realloc(answer.text, answer.length + length + 1);
  (void)user;
  if (!grown) return 1; /* ends the answer */
  memcpy(grown + answer.length, text, length);
  answer.text = grown;
  answer.length += length;
  if (ids) printf("%d ", token);
  else fwrite(text, 1, length, stdout);
  fflush(stdout);
  return 0;
}

static int failed(const char* what, const glmlite_error* error) {
  fprintf(stderr, "%s: %s\n", what, error->message);
  return 1;
}

int main(int argc, char** argv) {
  glmlite_error error;
  glmlite_model* model;
  glmlite_session* session;
  glmlite_info info = {sizeof info};
  glmlite_params params = {sizeof params};
  glmlite_message messages[MOST];
  int32_t prompt[PROMPT];
  size_t count = 0, n;
  char line[LINE];
  int status = 0;

  if (argc < 2) return fprintf(stderr, "chat MODEL.glmlite [SEED] [ids]\n"), 2;
  if (glmlite_open(argv[1], NULL, &model, &error)) return failed("open", &error);
  if (glmlite_get_info(model, &info, &error) || glmlite_get_params(model, &params, &error) ||
      glmlite_session_new(model, &session, &error))
    return failed("model", &error);
  fprintf(stderr, "%s, context %d, %d threads\n", info.name, info.context, info.threads);
  if (argc > 2) params.seed = strtoull(argv[2], NULL, 10);
  ids = argc > 3;
  params.max_tokens = 200;
  params.on_token = on_token;
  signal(SIGINT, interrupted);

  while (!status && count + 2 <= MOST && fgets(line, sizeof line, stdin)) {
    size_t length = strcspn(line, "\r\n");
    glmlite_message question = {"user", memcpy(malloc(length + 1), line, length), length};
    messages[count++] = question;
    params.cancel = cancel = glmlite_cancel_new(); /* one for each answer */
    answer.text = NULL, answer.length = 0;
    if (info.chats) {
      status = glmlite_chat(session, messages, count, &params, NULL, &error);
    } else { /* a model that goes on with a text, or fills its blanks */
      status = glmlite_tokenize(model, line, length, GLMLITE_PROMPT, prompt, PROMPT, &n, &error);
      if (!status) status = glmlite_generate(session, prompt, n, &params, NULL, &error);
    }
    if (status) failed("answer", &error);
    putchar('\n');
    glmlite_message said = {"assistant", answer.text, answer.length};
    messages[count++] = said;
    glmlite_cancel* done = cancel;
    cancel = NULL; /* first: Ctrl-C may come while the next question is waited for */
    glmlite_cancel_free(done);
  }
  while (count) free((void*)messages[--count].text);
  glmlite_session_free(session);
  glmlite_close(model);
  return status != 0;
}
