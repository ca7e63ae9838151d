/** A message on the page, redrawn from its node of the conversation. */
import { button, icon, make } from "./elements.js";
import { Growing, codeBlock } from "./render.js";
import { alternatives, callsOf } from "./store.js";
import { count, duration, has, t } from "./strings.js";

const LONGEST_PRETTY = 100_000; // characters

/** JSON text with line ends and indentation, its numbers and strings as they are; other text unchanged. */
export function pretty(text) {
  try {
    if (text.length > LONGEST_PRETTY) return text;
    JSON.parse(text);
  } catch {
    return text;
  }
  const pieces = text.match(/"(?:\\.|[^"\\])*"|[{}[\],:]|[^\s{}[\],:"]+/g);
  let depth = 0;
  let out = "";
  const line = () => "\n" + "  ".repeat(Math.min(depth, 20));
  pieces.forEach((piece, i) => {
    const empty = /[{[]/.test(pieces[i - 1] ?? "");
    if (piece === "}" || piece === "]") {
      depth--;
      out += (empty ? "" : line()) + piece;
    } else {
      if (empty) out += line();
      out += piece === ":" ? ": " : piece;
      if (piece === ",") out += line();
      if (piece === "{" || piece === "[") depth++;
    }
  });
  return out;
}

/** The text of a failure, and the server's own word below it. */
export function failureText(failure) {
  const name = failure.kind === "busy" && failure.wait ? "busyFor" : failure.kind;
  return t(has(name) ? name : "server", { n: failure.wait });
}

export class MessageView {
  /** `actions` are what its buttons do: edit(node, text), again(node), choose(node), results(node, texts), key(). */
  constructor(conversation, node, actions) {
    this.conversation = conversation;
    this.node = node;
    this.actions = actions;
    this.element = make("article", { class: `message ${node.role}`, "data-id": node.id });
    this.#build();
  }

  #build() {
    const { node } = this;
    const speaker = { user: "you", assistant: "assistant" }[node.role];
    this.element.setAttribute("aria-label", speaker ? t(speaker) : t("toolResult", { name: node.name }));
    this.under = make("footer", { class: "under" });
    this.drawn = {};
    if (node.role === "assistant") this.#buildAnswer();
    else this.element.replaceChildren(node.role === "user" ? this.#question() : this.#result(), this.under);
  }

  #question() {
    const bubble = make("div", { class: "bubble" });
    for (const { name, url, width, height } of this.node.pictures ?? [])
      bubble.append(make("img", { class: "picture", src: url, alt: name || t("picture"), width, height }));
    for (const file of this.node.files)
      bubble.append(
        make("details", { class: "file" }, make("summary", {}, icon("file"), file.name), make("pre", { tabindex: 0 }, file.text)),
      );
    if (this.node.content) bubble.append(make("p", { class: "plain" }, this.node.content));
    return bubble;
  }

  #result() {
    const { name, content } = this.node;
    return make(
      "details",
      { class: "call result", open: content.length < 2000 },
      make("summary", {}, icon("tool"), t("toolResult", { name })),
      codeBlock(pretty(content), pretty(content) === content ? "" : "json"),
    );
  }

  #buildAnswer() {
    this.thoughtName = make("summary");
    const thought = make("div", { class: "prose" });
    this.thought = make("details", { class: "thought", hidden: true }, this.thoughtName, thought);
    this.thoughtName.addEventListener("click", () => (this.unfoldedByHand = true));
    this.thoughtText = new Growing(thought);
    const prose = make("div", { class: "prose" });
    this.prose = new Growing(prose);
    this.calls = make("div", { class: "calls" });
    this.state = make("div", { class: "state", hidden: true });
    this.note = make("div", { class: "note", hidden: true });
    this.element.replaceChildren(this.thought, prose, this.calls, this.state, this.note, this.under);
  }

  /** Draws what changed. `live` while the answer is being written; `last` if no message is shown below this one. */
  refresh({ live, last }) {
    if (this.editing) return;
    if (this.node.role === "assistant") this.#refreshAnswer(live, last);
    this.element.classList.toggle("live", live);
    this.#refreshUnder(live);
  }

  #refreshAnswer(live, last) {
    const { node, drawn } = this;
    const thinks = live && !node.content && !node.calls.length;
    this.thought.hidden = !node.reasoning.trim();
    if (!this.unfoldedByHand) this.thought.open = thinks;
    const thought = node.thoughtMs ? t("thoughtFor", { time: duration(node.thoughtMs) }) : t("thought");
    this.thoughtName.textContent = thinks ? t("thinking") : thought;
    this.thought.classList.toggle("now", thinks);
    const key = [live, node.reasoning.length, node.content.length].join();
    if (drawn.text !== key) {
      this.thoughtText.update(node.reasoning, !thinks);
      this.prose.update(node.content, !live);
      drawn.text = key;
    }
    this.#refreshCalls(live, last);
    this.#refreshState(live);
    this.#refreshNote(live);
  }

  #refreshCalls(live, last) {
    const { node, drawn } = this;
    const whole = last && !live && !node.failure ? callsOf(node) : [];
    const asks = whole.length > 0;
    const key = JSON.stringify([node.calls, asks]);
    if (drawn.calls === key) return;
    drawn.calls = key;
    const fields = [];
    this.calls.replaceChildren(
      ...node.calls.map((call) => {
        const box = make("div", { class: "call" });
        box.append(make("div", { class: "name" }, icon("tool"), make("span", {}, t("toolCall", { name: call.name }))));
        box.append(codeBlock(pretty(call.arguments), "json"));
        if (whole.includes(call)) {
          const name = t("resultPlaceholder", { name: call.name });
          fields.push(make("textarea", { rows: 2, placeholder: name, "aria-label": name }));
          box.append(fields[fields.length - 1]);
        }
        return box;
      }),
    );
    if (asks) {
      const label = t(fields.length > 1 ? "sendResults" : "sendResult");
      const act = () => this.actions.results(node, fields.map((field) => field.value));
      this.calls.append(make("button", { type: "button", class: "plain", onclick: act }, label));
    }
  }

  #refreshState(live) {
    const { node, drawn } = this;
    const { progress } = node;
    const waits = live && !node.content && !node.reasoning && !node.calls.length;
    this.state.hidden = !waits;
    if (!waits) return;
    const reads = progress && progress.total > 0 && progress.processed < progress.total;
    if (!drawn.state) {
      drawn.state = { bar: make("i"), text: make("span") };
      this.state.append(make("span", { class: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i")));
      this.state.append(make("span", { class: "bar", "aria-hidden": "true" }, drawn.state.bar), drawn.state.text);
    }
    this.state.classList.toggle("reads", Boolean(reads));
    if (reads) {
      drawn.state.bar.style.width = `${(100 * progress.processed) / progress.total}%`;
      drawn.state.text.textContent = t("reading", { done: count(progress.processed), total: count(progress.total) });
    } else drawn.state.text.textContent = "";
  }

  #refreshNote(live) {
    const { node, drawn, actions } = this;
    const { failure } = node;
    const key = JSON.stringify([live, node.finish, failure]);
    if (drawn.note === key) return;
    drawn.note = key;
    const stopped = !live && !failure && (node.finish === "stopped" || node.finish === null);
    const cut = node.finish === "length";
    this.note.hidden = live || !(failure || stopped || cut);
    this.note.className = failure ? "note failure" : "note";
    if (this.note.hidden) return;
    if (!failure) return this.note.replaceChildren(t(stopped ? "stopped" : "cutByLength"));
    this.note.replaceChildren(make("p", {}, failureText(failure)));
    if (failure.detail) this.note.append(make("p", { class: "detail" }, t("serverSays", { detail: failure.detail })));
    const doing = [make("button", { type: "button", class: "plain", onclick: () => actions.again(node) }, t("retry"))];
    if (failure.kind === "key")
      doing.unshift(make("button", { type: "button", class: "plain", onclick: () => actions.key() }, t("enterKey")));
    this.note.append(make("p", { class: "actions" }, ...doing));
  }

  #refreshUnder(live) {
    const { node, drawn, conversation, actions, under } = this;
    const others = alternatives(conversation, node);
    const at = others.indexOf(node);
    const key = JSON.stringify([live, at, others.length, node.stats, Boolean(node.content), Boolean(node.failure)]);
    if (drawn.under === key) return;
    drawn.under = key;
    under.replaceChildren();
    if (live) return under.append(make("span", { class: "stats" }, statsText(node)));
    if (others.length > 1) {
      const label = t("branchLabel", { at: at + 1, of: others.length });
      const back = button("left", "previous", () => void actions.choose(others[at - 1]));
      const on = button("right", "next", () => void actions.choose(others[at + 1]));
      back.disabled = at === 0;
      on.disabled = at === others.length - 1;
      const text = make("span", { "aria-label": label, role: "img" }, t("branch", { at: at + 1, of: others.length }));
      under.append(make("span", { class: "branches" }, back, text, on));
    }
    if (node.content) under.append(button("copy", "copy", () => node.content));
    if (node.role === "user") under.append(button("edit", "edit", () => void this.#edit()));
    if (node.role === "assistant") {
      if (!node.failure) under.append(button("again", "regenerate", () => void actions.again(node)));
      under.append(make("span", { class: "stats" }, statsText(node)));
    }
  }

  #edit() {
    this.editing = true;
    const field = make("textarea", { "aria-label": t("message"), rows: Math.min(12, this.node.content.split("\n").length + 1) });
    field.value = this.node.content;
    const end = () => {
      this.editing = false;
      this.#build();
      this.refresh({ live: false, last: false });
      this.under.querySelector("button")?.focus();
    };
    const send = () => {
      this.editing = false;
      this.actions.edit(this.node, field.value);
    };
    const form = make(
      "div",
      { class: "editing" },
      field,
      make(
        "p",
        { class: "actions" },
        make("button", { type: "button", class: "plain", onclick: end }, t("cancel")),
        make("button", { type: "button", class: "plain strong", onclick: send }, t("send")),
      ),
    );
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (sends(event)) {
        event.preventDefault();
        send();
      }
    });
    this.element.replaceChildren(form);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

const touch = matchMedia("(hover: none) and (pointer: coarse)");

/** Whether a key sends a message. The Enter that ends the choice of a Chinese word does not, nor does a phone's, which
 * has no other way to begin a line. */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229 && !touch.matches;
}

function statsText(node) {
  const { speed, answer, prompt, cached } = node.stats;
  const words = [];
  if (speed) words.push(t("speed", { n: speed < 10 ? speed.toFixed(1) : count(speed) }));
  if (answer !== undefined) words.push(t("tokens", { n: count(answer) }));
  if (prompt !== undefined) words.push(t("promptTokens", { n: count(prompt) }));
  if (cached) words.push(t("cached", { n: count(cached) }));
  return words.join(" · ");
}
