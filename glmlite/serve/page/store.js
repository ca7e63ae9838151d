/**
 * Conversations: trees of messages, kept in this browser.
 *
 * A conversation's `nodes` are its messages by id, each after its `parent` ("" for the first); `chosen` names, for each
 * parent, the child that is shown. So an edited or repeated message is another child, and nothing is lost.
 */

import { MOST_PICTURES, pictureFrom } from "./pictures.js";

/** An id; crypto.randomUUID is missing where the page is not served from localhost or by TLS. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return "c" + Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

/** A conversation without messages. */
export function blank(settings) {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, model: "", settings, nodes: {}, chosen: {} };
}

const MESSAGE = {
  user: { content: "", files: [], pictures: [] },
  assistant: { content: "", reasoning: "", calls: [], finish: null, stats: {} },
  tool: { content: "", callId: "", name: "" },
};

/** Adds a message below `parent`, and shows it. */
export function add(conversation, parent, role, fields = {}) {
  const node = { id: newId(), parent, role, created: Date.now(), ...structuredClone(MESSAGE[role]), ...fields };
  conversation.nodes[node.id] = node;
  conversation.chosen[parent] = node.id;
  return node;
}

/** The messages in place of which this one is shown, itself among them, oldest first. */
export function alternatives(conversation, node) {
  return Object.values(conversation.nodes).filter((other) => other.parent === node.parent);
}

/** The messages that are shown, first to last. */
export function shown(conversation) {
  const path = [];
  for (let id = conversation.chosen[""]; id && conversation.nodes[id]; id = conversation.chosen[id])
    path.push(conversation.nodes[id]);
  return path;
}

/** The messages from the first to this one. */
export function pathTo(conversation, id) {
  const path = [];
  for (; id; id = conversation.nodes[id].parent) path.unshift(conversation.nodes[id]);
  return path;
}

/** The calls of an answer that are whole: nobody should act on half of the arguments of one that was cut off. */
export function callsOf(node) {
  return node.calls.filter((call) => {
    try {
      return Boolean(JSON.parse(call.arguments));
    } catch {
      return false;
    }
  });
}

/** Takes a message without children out of its conversation; the last of its alternatives is shown instead. */
export function drop(conversation, node) {
  delete conversation.nodes[node.id];
  const left = alternatives(conversation, node);
  if (left.length) conversation.chosen[node.parent] = left[left.length - 1].id;
  else delete conversation.chosen[node.parent];
}

/** The first line of what was asked first. */
export function titleOf(conversation) {
  const first = shown(conversation).find((node) => node.role === "user");
  const text = first?.content.trim() || (first?.files[0] ?? first?.pictures?.[0])?.name || "";
  const line = text.split("\n", 1)[0];
  return line.length > 60 ? line.slice(0, 59).trimEnd() + "…" : line;
}

// ---- export and import -------------------------------------------------------------------------------------------

const FORMAT = "glmlite.conversations";

/** The text of a file with these conversations. */
export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

const text = (value, limit = 1 << 24) => (typeof value === "string" ? value.slice(0, limit) : "");
const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);
const object = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
const list = (value) => (Array.isArray(value) ? value : []);
const numbers = (value) => Object.fromEntries(Object.entries(object(value)).filter(([, n]) => Number.isFinite(n)));

/** The conversations in a file's text, each with only what the page knows. Raises an Error that says what is wrong. */
export function imported(source) {
  const file = object(JSON.parse(source));
  if (file.format !== FORMAT) throw new Error(`"format" is not "${FORMAT}"`);
  if (file.version !== 1) throw new Error(`"version" is ${JSON.stringify(file.version)}, not 1`);
  return list(file.conversations).map(conversationFrom);
}

const ID = /^c[0-9a-f]{24}$/; // as newId makes them

function conversationFrom(raw) {
  const given = object(raw);
  const conversation = blank(settingsFrom(given.settings));
  if (ID.test(given.id)) conversation.id = given.id;
  conversation.title = text(given.title, 200);
  conversation.named = given.named === true;
  conversation.model = text(given.model, 500);
  conversation.created = number(given.created, conversation.created);
  conversation.updated = number(given.updated, conversation.updated);
  const nodes = new Map(); // a map, since ids are the file's
  for (const entry of Object.values(object(given.nodes))) {
    const node = object(entry);
    // A parent stands before its children, so there are no circles.
    if (!ID.test(node.id) || !Object.hasOwn(MESSAGE, node.role) || !(node.parent === "" || nodes.has(node.parent))) continue;
    nodes.set(node.id, nodeFrom(node));
  }
  conversation.nodes = Object.fromEntries(nodes);
  for (const [parent, child] of Object.entries(object(given.chosen)))
    if (nodes.get(child)?.parent === parent) conversation.chosen[parent] = child;
  for (const node of nodes.values()) conversation.chosen[node.parent] ??= node.id;
  conversation.title ||= titleOf(conversation);
  return conversation;
}

function nodeFrom(raw) {
  const node = { id: raw.id, parent: raw.parent, role: raw.role, created: number(raw.created, Date.now()), content: text(raw.content) };
  if (raw.role === "user") {
    node.pictures = list(raw.pictures).slice(0, MOST_PICTURES).map((picture) => pictureFrom(object(picture))).filter(Boolean);
    node.files = list(raw.files).map((file) => ({ name: text(object(file).name, 200), text: text(object(file).text) }));
  }
  if (raw.role === "tool") Object.assign(node, { callId: text(raw.callId, 200), name: text(raw.name, 200) });
  if (raw.role === "assistant") {
    node.reasoning = text(raw.reasoning);
    node.calls = list(raw.calls).map((call) => ({
      id: text(object(call).id, 200),
      name: text(object(call).name, 200),
      arguments: text(object(call).arguments),
    }));
    node.finish = text(raw.finish, 40) || null;
    node.stats = numbers(raw.stats);
    if (Number.isFinite(raw.thoughtMs)) node.thoughtMs = raw.thoughtMs;
    if (raw.failure) node.failure = { kind: text(object(raw.failure).kind, 40), detail: text(object(raw.failure).detail, 2000) };
  }
  return node;
}

/** A conversation's settings, with only what the page knows. */
export function settingsFrom(raw) {
  const given = object(raw);
  return {
    system: text(given.system),
    thinking: ["on", "off"].includes(given.thinking) ? given.thinking : "default",
    tools: text(given.tools),
    sampling: numbers(given.sampling),
  };
}

// ---- IndexedDB ---------------------------------------------------------------------------------------------------

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });

const entryOf = ({ id, title, updated }) => ({ id, title, updated });

/** The conversations of this browser, or, where it keeps nothing, of this tab (`kept` is false). */
export class Store {
  static async open() {
    const store = new Store();
    try {
      const request = indexedDB.open("glmlite", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("conversations", { keyPath: "id" });
        request.result.createObjectStore("entries", { keyPath: "id" }); // what the list shows
      };
      store.db = await done(request);
    } catch {
      store.memory = new Map();
    }
    store.kept = Boolean(store.db);
    return store;
  }

  /** [{id, title, updated}], the latest first. */
  async entries() {
    const found = this.memory
      ? [...this.memory.values()].map(entryOf)
      : await done(this.db.transaction("entries").objectStore("entries").getAll());
    return found.sort((a, b) => b.updated - a.updated);
  }

  /** The conversation of this id, or undefined. */
  async get(id) {
    if (this.memory) return structuredClone(this.memory.get(id));
    return done(this.db.transaction("conversations").objectStore("conversations").get(id));
  }

  async put(conversation) {
    if (this.memory) return void this.memory.set(conversation.id, structuredClone(conversation));
    const transaction = this.db.transaction(["conversations", "entries"], "readwrite");
    transaction.objectStore("conversations").put(conversation);
    transaction.objectStore("entries").put(entryOf(conversation));
    transaction.commit(); // at once: the page may be about to go
    await finished(transaction);
  }

  async remove(id) {
    if (this.memory) return void this.memory.delete(id);
    const transaction = this.db.transaction(["conversations", "entries"], "readwrite");
    transaction.objectStore("conversations").delete(id);
    transaction.objectStore("entries").delete(id);
    await finished(transaction);
  }

  /** Calls `visit` with each conversation until it returns false. */
  async each(visit) {
    if (this.memory) {
      for (const conversation of this.memory.values()) if (visit(structuredClone(conversation)) === false) return;
      return;
    }
    const request = this.db.transaction("conversations").objectStore("conversations").openCursor();
    await new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor || visit(cursor.value) === false) resolve();
        else cursor.continue();
      };
    });
  }

  /** Conversations in which all the words of `query` stand, in titles or messages: [{id, title, updated, snippet}]. */
  async search(query, limit = 50) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    const turn = (this.turn = (this.turn ?? 0) + 1);
    await this.each((conversation) => {
      if (turn !== this.turn) return false; // more was typed meanwhile
      const texts = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)];
      const lower = texts.map((piece) => piece.toLowerCase());
      if (!words.every((word) => lower.some((piece) => piece.includes(word)))) return true;
      const at = lower.findIndex((piece, i) => i && piece.includes(words[0]));
      found.push({ ...entryOf(conversation), snippet: at < 0 ? "" : snippet(texts[at], lower[at].indexOf(words[0])) });
      return found.length < limit;
    });
    return found.sort((a, b) => b.updated - a.updated);
  }
}

function snippet(piece, at) {
  const begin = Math.max(0, at - 30);
  return (begin ? "…" : "") + piece.slice(begin, at + 90).replace(/\s+/g, " ");
}
