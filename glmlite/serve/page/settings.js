/** What a person can set: of the conversation (system prompt, thinking, sampling, tools), and of the browser. */
import { make } from "./elements.js";
import { settingsFrom } from "./store.js";
import { label, t } from "./strings.js";

// name, least, most, step
const SAMPLING = [
  ["temperature", 0, 5, 0.05],
  ["top_p", 0, 1, 0.01],
  ["top_k", 0, 100000, 1],
  ["min_p", 0, 1, 0.01],
  ["repetition_penalty", 0.1, 5, 0.01],
  ["presence_penalty", -2, 2, 0.1],
  ["frequency_penalty", -2, 2, 0.1],
  ["max_tokens", 1, 10000000, 1],
  ["seed", 0, 4294967295, 1],
];
const WITHOUT = { max_tokens: "noLimit", seed: "random" }; // what an empty field means where the server names no value

const $ = (id) => document.getElementById(id);

/** A value that this browser keeps, or `otherwise`. */
export function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`glmlite.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keeps a value in this browser; undefined forgets it. */
export function keep(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(`glmlite.${name}`);
    else localStorage.setItem(`glmlite.${name}`, JSON.stringify(value));
  } catch {
    // A browser that keeps no data.
  }
}

/** The settings that a new conversation begins with. */
export const settingsForNew = () => settingsFrom(kept("settings", {}));

/** The functions in the text of the tools' field, in the API's form; undefined for an empty one. Raises an Error that
 * says what is wrong. */
export function toolsIn(text) {
  if (!text.trim()) return undefined;
  const list = JSON.parse(text);
  if (!Array.isArray(list)) throw new Error(t("toolsNoList"));
  const tools = list.map((entry) => (entry?.function ? entry : { type: "function", function: entry }));
  if (!tools.every((tool) => typeof tool.function?.name === "string" && tool.function.name)) throw new Error(t("toolsNoName"));
  return tools.length ? tools : undefined;
}

/** What a request says of these settings. */
export function asRequest(settings) {
  const request = { ...settings.sampling };
  if (settings.thinking !== "default") request.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  try {
    request.tools = toolsIn(settings.tools);
  } catch {
    // The field says so below itself.
  }
  return request;
}

/** The dialog. `page` has conversation, props, key; changed() is called after a change of the conversation's settings. */
export class Settings {
  constructor(page) {
    this.page = page;
    this.dialog = $("settings");
    for (const [name, least, most, step] of SAMPLING) {
      const field = make("input", { type: "number", id: `set-${name}`, min: least, max: most, step, inputmode: "decimal" });
      field.addEventListener("input", () => this.#change());
      $("sampling").append(make("label", { class: "field line" }, make("span", { "data-t": name }), field));
    }
    for (const id of ["system", "thinking", "tools"]) $(id).addEventListener("input", () => this.#change());
    $("settings-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    $("use-for-new").addEventListener("click", () => {
      keep("settings", this.page.conversation.settings);
      this.page.toast(t("usedForNew"));
    });
    $("reset").addEventListener("click", () => {
      this.page.conversation.settings = settingsFrom({});
      keep("settings", undefined);
      this.draw();
      this.page.changed();
    });
    $("key").addEventListener("change", () => this.#key());
    $("remember").addEventListener("change", () => this.#key());
  }

  /** Opens it, with the cursor in the field of this id if one is named. */
  open(id) {
    this.draw();
    if (!this.dialog.open) this.dialog.showModal();
    if (id) $(id).focus();
  }

  draw() {
    label(this.dialog);
    const { settings } = this.page.conversation;
    const { defaults = {}, capabilities } = this.page.props;
    $("system").value = settings.system;
    $("thinking").value = settings.thinking;
    $("thinking-field").hidden = Array.isArray(capabilities) && !capabilities.includes("thinking");
    $("tools").value = settings.tools;
    $("tools-box").open = Boolean(settings.tools);
    for (const [name] of SAMPLING) {
      const value = defaults?.[name];
      $(`set-${name}`).value = settings.sampling[name] ?? "";
      $(`set-${name}`).placeholder = value ?? (WITHOUT[name] ? t(WITHOUT[name]) : "");
    }
    $("key").value = this.page.key;
    $("remember").checked = kept("key", undefined) !== undefined;
    this.#checkTools();
  }

  #change() {
    const { settings } = this.page.conversation;
    settings.system = $("system").value;
    settings.thinking = $("thinking").value;
    settings.tools = $("tools").value;
    for (const [name] of SAMPLING) {
      const field = $(`set-${name}`);
      if (field.value !== "" && field.validity.valid) settings.sampling[name] = field.valueAsNumber;
      else if (field.value === "") delete settings.sampling[name];
    }
    this.#checkTools();
    this.page.changed();
  }

  #checkTools() {
    const bad = $("tools-bad");
    bad.hidden = true;
    try {
      toolsIn($("tools").value);
    } catch (error) {
      bad.textContent = t("toolsBad", { why: error.message });
      bad.hidden = false;
    }
  }

  #key() {
    const key = $("key").value.trim();
    keep("key", $("remember").checked ? key : undefined);
    this.page.useKey(key);
  }
}
