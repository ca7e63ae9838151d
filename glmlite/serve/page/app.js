/** The page: what is shown, what is running, and what the buttons do. */
import { Composer, withFiles } from "./composer.js";
import { download, make, say, toast } from "./elements.js";
import { MessageView, failureText } from "./messages.js";
import { Palette } from "./palette.js";
import { Settings, asRequest, keep, kept, settingsForNew } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store, add, blank, callsOf, drop, exported, imported, newId, pathTo, shown, titleOf } from "./store.js";
import { chat, models, props, take } from "./stream.js";
import { count, label, language, setLanguage, t } from "./strings.js";

const $ = (id) => document.getElementById(id);
const IDEAS = ["idea1", "idea2", "idea3"];
const THEMES = ["system", "light", "dark"];
const SAVE_EVERY = 2000; // ms, while an answer is written
const ASK_AGAIN = 3000; // ms, after a server that is gone

const page = {
  conversation: blank(settingsForNew()),
  key: kept("key", ""),
  models: [],
  props: {},
  toast,
  changed: () => settingsChanged(),
  useKey: (key) => {
    page.key = key;
    connect();
  },
};
const live = new Map(); // conversation id -> {conversation, node, controller}
const views = new Map(); // message id -> MessageView, of the conversation that is shown
let store;
let entries = [];

// ---- the server --------------------------------------------------------------------------------------------------

let asking = 0;

/** Learns which models there are and what their defaults are; says so if the server cannot be asked. */
async function connect() {
  const turn = ++asking;
  let failure;
  try {
    const found = await models(page.key);
    if (turn !== asking) return;
    page.models = found;
    await learn();
  } catch (error) {
    failure = error.kind ? error : { kind: "gone" };
  }
  if (turn !== asking) return;
  banner(failure);
  if (failure && ["gone", "loading", "server"].includes(failure.kind))
    setTimeout(() => turn === asking && connect(), document.hidden ? 5 * ASK_AGAIN : ASK_AGAIN);
}

/** The model that answers: the conversation's, or else the one chosen last, if the server has it. */
function model() {
  const wanted = [page.conversation.model, kept("model", "")].find((name) => page.models.includes(name));
  return wanted ?? page.models[0] ?? "";
}

async function learn() {
  page.props = await props(page.key, page.models.length > 1 ? model() : "");
  drawBar();
  if ($("settings").open) settings.draw();
}

function banner(failure) {
  const box = $("banner");
  box.hidden = !failure;
  if (!failure) return box.replaceChildren();
  const missing = failure.kind === "key" && !page.key;
  const text = missing ? t("keyMissing") : failureText(failure);
  const key = failure.kind === "key";
  const act = () => (key ? settings.open("key") : connect());
  box.replaceChildren(text, make("button", { type: "button", class: "plain", onclick: act }, t(key ? "enterKey" : "retry")));
}

// ---- drawing -----------------------------------------------------------------------------------------------------

let sticks = true; // whether the end of the conversation stays in sight
let frame = 0;
let notBefore = 0;

/** Draws what is being written, in the next frame. */
function schedule() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const begin = performance.now();
    if (begin < notBefore) return schedule();
    const running = live.get(page.conversation.id);
    if (running) drawLive(running.node);
    else draw();
    // A long text that takes long to draw is drawn less often.
    const took = performance.now() - begin;
    notBefore = took > 30 ? begin + 4 * took : 0;
  });
}

function draw() {
  const { conversation } = page;
  const nodes = shown(conversation);
  const running = live.get(conversation.id);
  const wanted = nodes.map((node) => {
    if (!views.has(node.id)) views.set(node.id, new MessageView(conversation, node, actions));
    return views.get(node.id);
  });
  const thread = $("thread");
  wanted.forEach(({ element }, i) => {
    if (thread.children[i] !== element) thread.insertBefore(element, thread.children[i] ?? null);
  });
  while (thread.children.length > wanted.length) thread.lastElementChild.remove();
  wanted.forEach((view, i) => view.refresh({ live: running?.node === view.node, last: i === wanted.length - 1 }));
  $("welcome").hidden = nodes.length > 0;
  composer.busy(Boolean(running));
  drawBar();
  if (sticks) toEnd();
}

function drawLive(node) {
  views.get(node.id)?.refresh({ live: true, last: true });
  if (sticks) toEnd();
}

function drawBar() {
  const { conversation } = page;
  $("title").textContent = conversation.title || t("newChat");
  document.title = conversation.title ? `${conversation.title} – glmlite` : "glmlite";
  const several = page.models.length > 1;
  $("model").hidden = !several;
  $("model-name").textContent = several ? "" : (page.models[0] ?? "");
  const names = [...$("model").options].map((option) => option.value);
  if (several && names.join("\n") !== page.models.join("\n"))
    $("model").replaceChildren(...page.models.map((name) => make("option", { value: name }, name)));
  if (several) $("model").value = model();
  composer.sees(Boolean(page.props.capabilities?.includes("vision")));
  $("version").textContent = page.props.version ? t("about", { version: page.props.version }) : "";
  drawContext();
}

function drawContext() {
  const last = shown(page.conversation).findLast((node) => node.stats?.prompt !== undefined);
  const total = page.props.context;
  $("context").hidden = !last || !total;
  if ($("context").hidden) return;
  const used = last.stats.prompt + (last.stats.answer ?? 0);
  const text = t("context", { used: count(used), total: count(total) });
  $("context").setAttribute("aria-label", text);
  $("context").title = text;
  $("context").style.setProperty("--used", Math.min(1, used / total));
  $("context").classList.toggle("full", used > 0.9 * total);
  $("context").lastElementChild.textContent = `${count(used)} / ${count(total)}`;
}

const drawList = () => sidebar.draw(entries, page.conversation.id, (id) => live.has(id));

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

$("scroll").addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  sticks = scrollHeight - scrollTop - clientHeight < 60;
  $("to-end").hidden = sticks;
});
$("to-end").addEventListener("click", () => {
  sticks = true;
  toEnd();
});

// ---- conversations -----------------------------------------------------------------------------------------------

const others = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("glmlite"); // other tabs

async function save(conversation) {
  if (!Object.keys(conversation.nodes).length) return;
  try {
    await store.put(conversation);
    await listAgain();
    if (!live.has(conversation.id)) others?.postMessage(conversation.id);
  } catch (error) {
    toast(t("notSaved", { why: error.message }));
  }
}

async function listAgain() {
  entries = await store.entries();
  drawList();
}

others?.addEventListener("message", async ({ data }) => {
  await listAgain();
  if (data === page.conversation.id && !live.has(data) && !document.querySelector(".editing")) show(await store.get(data));
});

/** Shows a conversation, or a new one if there is none. */
function show(conversation) {
  page.conversation = conversation ?? blank(settingsForNew());
  views.clear();
  $("thread").replaceChildren();
  sticks = true;
  $("to-end").hidden = true;
  drawList();
  draw();
  if (page.models.length > 1) learn().catch(() => {});
}

async function followAddress() {
  const id = /^#\/c\/(\w+)$/.exec(location.hash)?.[1];
  if (id === page.conversation.id) return;
  const found = id && (live.get(id)?.conversation ?? (await store.get(id)));
  if (found || Object.keys(page.conversation.nodes).length || id) show(found);
  if (id && !found) location.replace("#/");
}

function create() {
  if (location.hash.startsWith("#/c/")) location.hash = "#/";
  else show();
  sidebar.chosen();
  $("text").focus();
}

/** The conversation of this id, the very one that is shown or running if it is. */
async function conversationOf(id) {
  return live.get(id)?.conversation ?? (page.conversation.id === id ? page.conversation : await store.get(id));
}

async function rename(id, title) {
  const conversation = await conversationOf(id);
  if (!conversation || title === conversation.title) return drawList();
  conversation.title = title;
  conversation.named = true;
  await save(conversation);
  drawBar();
}

async function remove(id) {
  const conversation = await conversationOf(id);
  if (!conversation) return listAgain();
  live.get(id)?.controller.abort();
  live.delete(id);
  await store.remove(id);
  others?.postMessage(id);
  await listAgain();
  if (page.conversation.id === id) create();
  toast(t("removed", { title: conversation.title }), t("undo"), async () => {
    await save(conversation);
    location.hash = `#/c/${id}`;
  });
}

const today = () => new Date().toISOString().slice(0, 10);

async function saveFile(id) {
  const conversation = await conversationOf(id);
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-|-$/g, "");
  download(`glmlite-${name || "chat"}.json`, exported([conversation]));
}

async function saveAll() {
  const all = [];
  await store.each((conversation) => void all.push(conversation));
  download(`glmlite-${today()}.json`, exported(all));
}

/** Takes the conversations of a file; one that is here already stays as it is, another of the same id gets a new one. */
async function load(file) {
  let found;
  try {
    found = imported(await file.text());
  } catch (error) {
    return toast(t("importBad", { name: file.name, why: error.message }));
  }
  let same = 0;
  for (const conversation of found) {
    const here = await store.get(conversation.id);
    if (here?.updated === conversation.updated) same++;
    else await store.put(here ? { ...conversation, id: newId() } : conversation);
  }
  await listAgain();
  toast(t("imported", { n: found.length - same, same }));
}

let savingSettings;

function settingsChanged() {
  const { conversation } = page;
  clearTimeout(savingSettings);
  savingSettings = setTimeout(() => save(conversation), 500);
}

// ---- answers -----------------------------------------------------------------------------------------------------

/** A text behind pictures, as parts where there are any: so the models were trained. */
function withPictures(text, pictures = []) {
  if (!pictures.length) return text;
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

/** A message in the API's form; undefined for an answer that came to nothing. */
function asMessage(node) {
  if (node.role === "user") return { role: "user", content: withPictures(withFiles(node.content, node.files), node.pictures) };
  if (node.role === "tool") return { role: "tool", tool_call_id: node.callId, name: node.name, content: node.content };
  const calls = callsOf(node);
  if (!node.content && !calls.length) return undefined;
  const message = { role: "assistant", content: node.content || null };
  if (node.reasoning) message.reasoning_content = node.reasoning;
  if (calls.length)
    message.tool_calls = calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  return message;
}

function request(conversation, parent) {
  const messages = pathTo(conversation, parent).map(asMessage).filter(Boolean);
  if (conversation.settings.system.trim()) messages.unshift({ role: "system", content: conversation.settings.system });
  return {
    model: model(),
    messages,
    ...asRequest(conversation.settings),
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    timings_per_token: true,
  };
}

/** Has the model answer the message `parent`. */
async function answer(conversation, parent) {
  const body = request(conversation, parent);
  const node = add(conversation, parent, "assistant");
  const controller = new AbortController();
  live.set(conversation.id, { conversation, node, controller });
  conversation.model = body.model;
  conversation.updated = Date.now();
  conversation.title = conversation.named ? conversation.title : titleOf(conversation);
  if (page.conversation === conversation && location.hash !== `#/c/${conversation.id}`)
    history.pushState(null, "", `#/c/${conversation.id}`);
  sticks = true;
  say(t("answering"));
  draw();
  save(conversation);
  const saving = setInterval(() => save(conversation), SAVE_EVERY);
  try {
    for await (const chunk of chat(body, { key: page.key, signal: controller.signal })) {
      take(node, chunk);
      if (page.conversation === conversation) schedule();
    }
    say(t("answered"));
  } catch (error) {
    if (controller.signal.aborted) node.finish = "stopped";
    else node.failure = { kind: error.kind ?? "server", detail: error.detail ?? String(error), wait: error.wait ?? 0 };
    say(node.failure ? failureText(node.failure) : t("stopped"));
    if (["gone", "cut", "key"].includes(node.failure?.kind)) connect();
  } finally {
    clearInterval(saving);
    if (node.thoughtSince) node.thoughtMs = (node.thoughtMs ?? 0) + Date.now() - node.thoughtSince;
    delete node.thoughtSince;
    delete node.progress;
    if (live.get(conversation.id)?.node === node) {
      live.delete(conversation.id);
      save(conversation);
    }
    if (page.conversation === conversation) draw();
    if (page.models.length > 1) learn().catch(() => {}); // it may have been loaded only for this
  }
}

const busy = () => live.has(page.conversation.id);

function send(content, files = [], pictures = []) {
  if (busy()) return false;
  const { conversation } = page;
  const nodes = shown(conversation);
  const parent = nodes.length ? nodes[nodes.length - 1].id : "";
  answer(conversation, add(conversation, parent, "user", { content, files, pictures }).id);
  return true;
}

function stop() {
  live.get(page.conversation.id)?.controller.abort();
}

const actions = {
  edit(node, content) {
    const { files, pictures = [] } = node;
    if (busy() || !(content.trim() || files.length || pictures.length)) return draw();
    const { conversation } = page;
    views.delete(node.id);
    answer(conversation, add(conversation, node.parent, "user", { content, files, pictures }).id);
  },
  again(node) {
    if (busy()) return;
    if (node.failure && !node.content && !node.calls.length) drop(page.conversation, node);
    answer(page.conversation, node.parent);
  },
  choose(node) {
    if (busy()) return;
    page.conversation.chosen[node.parent] = node.id;
    sticks = false;
    draw();
    save(page.conversation);
    views.get(node.id).element.querySelector(".branches button:enabled")?.focus();
  },
  results(node, texts) {
    if (busy()) return;
    let parent = node.id;
    callsOf(node).forEach((call, i) => {
      parent = add(page.conversation, parent, "tool", { content: texts[i], callId: call.id, name: call.name }).id;
    });
    answer(page.conversation, parent);
  },
  key: () => settings.open("key"),
};

// ---- appearance and language -------------------------------------------------------------------------------------

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("glmlite.theme", name); // read by theme.js, plain
  } catch {
    // A browser that keeps no data.
  }
  const words = t("theme", { name: t(`theme_${name}`) });
  $("theme").title = words;
  $("theme").setAttribute("aria-label", words);
  $("theme-choice").value = name;
}

function useLanguage(name) {
  setLanguage(name);
  label(document);
  $("language-choice").value = language();
  useTheme(document.documentElement.dataset.theme);
  $("ideas").replaceChildren(
    ...IDEAS.map((idea) => make("li", {}, make("button", { type: "button", onclick: () => send(t(idea)) }, t(idea)))),
  );
  if (!store) return;
  views.clear();
  $("thread").replaceChildren();
  drawList();
  draw();
  if ($("settings").open) settings.draw();
  if (!$("banner").hidden) connect();
}

$("theme").addEventListener("click", () => {
  const at = THEMES.indexOf(document.documentElement.dataset.theme);
  useTheme(THEMES[(at + 1) % THEMES.length]);
});
$("theme-choice").addEventListener("change", () => useTheme($("theme-choice").value));
for (const [id, choice] of [
  ["language", () => (language() === "en" ? "zh" : "en")],
  ["language-choice", () => $("language-choice").value],
])
  $(id).addEventListener(id === "language" ? "click" : "change", () => {
    keep("language", choice());
    useLanguage(kept("language", choice()));
  });

// ---- the parts, and the keys -------------------------------------------------------------------------------------

const composer = new Composer({ send, stop, model });
const sidebar = new Sidebar({ rename, remove, save: saveFile });
const settings = new Settings(page);
const palette = new Palette({
  search: (words) => (words ? store.search(words) : Promise.resolve(entries.slice(0, 20))),
  open: (id) => {
    location.hash = `#/c/${id}`;
    sidebar.chosen();
  },
  create,
});

const apple = /mac|iphone|ipad/i.test(navigator.platform);
$("search-key").textContent = apple ? "⌘K" : "Ctrl K";
$("new").addEventListener("click", create);
$("search").addEventListener("click", () => palette.show());
$("tune").addEventListener("click", () => settings.open());
$("export").addEventListener("click", saveAll);
$("import").addEventListener("click", () => $("pick-import").click());
$("pick-import").addEventListener("change", async () => {
  await load($("pick-import").files[0]);
  $("pick-import").value = "";
});
$("model").addEventListener("change", () => {
  page.conversation.model = $("model").value;
  keep("model", $("model").value);
  learn().catch(() => connect());
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the conversation
  $("text").focus();
});
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if ($("settings").open) $("settings").close();
    palette.show();
  } else if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) stop();
});
addEventListener("hashchange", followAddress);
addEventListener("pagehide", () => {
  for (const { conversation, node, controller } of live.values()) {
    node.finish = "stopped";
    controller.abort();
    store.put(conversation);
  }
});

useLanguage(kept("language", navigator.language));
store = await Store.open();
if (!store.kept) toast(t("notKept"));
await Promise.all([listAgain(), connect()]);
await followAddress();
draw();
document.documentElement.dataset.ready = "";
$("text").focus();
