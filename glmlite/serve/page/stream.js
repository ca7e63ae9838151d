/** The server's API: what there is, and one answer as a stream. Addresses are relative, so the page works below any path. */

/** What went wrong, of a kind that `strings.js` has a text for; `detail` is the server's own word. */
export class Failure extends Error {
  constructor(kind, detail = "", wait = 0) {
    super(detail || kind);
    this.kind = kind;
    this.detail = detail;
    this.wait = wait; // seconds after which a busy server wants to be asked again
  }
}

const KINDS = { 400: "bad", 401: "key", 403: "refused", 404: "missing", 413: "large", 429: "busy", 503: "loading" };
const LONGEST_EVENT = 1 << 24; // characters

function failure(status, error, wait) {
  const detail = typeof error === "string" ? error : String(error?.message ?? "");
  if (error?.code === "context_length_exceeded" || /maximum context length|exceeds the available context/.test(detail))
    return new Failure("overflow", detail);
  return new Failure(KINDS[status] ?? (status < 500 ? "bad" : "server"), detail, wait);
}

async function ask(path, { key, body, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("gone");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let error = text.slice(0, 500);
  try {
    error = JSON.parse(text).error ?? error;
  } catch {
    // A proxy's own page: its words are shown as they are.
  }
  const wait = Number(response.headers.get("retry-after")) || 0;
  throw failure(response.status, error, wait);
}

async function json(path, key) {
  const response = await ask(path, { key });
  try {
    return await response.json();
  } catch {
    throw new Failure("gone", path);
  }
}

/** The names of the models that the server has, the first of them its default. */
export async function models(key) {
  const { data } = await json("v1/models", key);
  return (Array.isArray(data) ? data : []).map((entry) => String(entry.id));
}

/** The server's defaults and limits for a model; {} from a server that does not tell. */
export async function props(key, model) {
  try {
    const found = await json("props" + (model ? `?model=${encodeURIComponent(model)}` : ""), key);
    return found && typeof found === "object" ? found : {};
  } catch (error) {
    if (error.kind === "missing" || error.kind === "bad") return {};
    throw error;
  }
}

/** The data of each server-sent event; comments and other fields are passed over. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (rest.length > LONGEST_EVENT) throw new Failure("server", "event too long");
      for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Streams the answer to `body`: yields the chunks as they come. Raises a Failure, or AbortError when `signal` says so. */
export async function* chat(body, { key, signal } = {}) {
  const response = await ask("v1/chat/completions", { key, body, signal });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw failure(500, chunk.error);
      finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("cut", error instanceof SyntaxError ? error.message : "");
  }
  if (!finished) throw new Failure("cut");
}

/** Takes a chunk into the message `node`: content, reasoning, calls, finish, progress and stats. */
export function take(node, chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) {
    node.reasoning += thought;
    node.thoughtSince ??= Date.now();
  }
  if ((delta.content || delta.tool_calls) && node.thoughtSince) {
    node.thoughtMs = (node.thoughtMs ?? 0) + Date.now() - node.thoughtSince;
    delete node.thoughtSince;
  }
  if (delta.content) node.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    const at = part.index ?? node.calls.length;
    while (node.calls.length <= Math.min(at, 127)) node.calls.push({ id: "", name: "", arguments: "" });
    const call = node.calls[at];
    if (!call) continue;
    if (part.id) call.id = part.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (choice?.finish_reason) node.finish = choice.finish_reason;
  if (chunk.prompt_progress) node.progress = chunk.prompt_progress;
  if (chunk.timings) {
    node.stats.speed = chunk.timings.predicted_per_second;
    node.stats.answer = chunk.timings.predicted_n;
  }
  if (chunk.usage) {
    node.stats.prompt = chunk.usage.prompt_tokens;
    node.stats.answer = chunk.usage.completion_tokens;
    node.stats.cached = chunk.usage.prompt_tokens_details?.cached_tokens;
  }
}
