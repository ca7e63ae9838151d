/** The list of conversations, by day. */
import { button, make } from "./elements.js";
import { t } from "./strings.js";

const $ = (id) => document.getElementById(id);
const DAY = 86_400_000;

/** The name of the group that a time belongs to. */
function group(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "today";
  if (time >= today - DAY) return "yesterday";
  return time >= today - 7 * DAY ? "thisWeek" : "earlier";
}

export class Sidebar {
  /** rename(id, title), remove(id) and save(id) are what the buttons of an entry do. */
  constructor(actions) {
    this.actions = actions;
    const narrow = matchMedia("(max-width: 48rem)");
    this.narrow = () => narrow.matches;
    this.show(!narrow.matches);
    narrow.addEventListener("change", () => this.show(!narrow.matches));
    $("side-open").addEventListener("click", () => {
      this.show(true);
      $("side-close").focus();
    });
    $("side-close").addEventListener("click", () => {
      this.show(false);
      $("side-open").focus();
    });
    $("shade").addEventListener("click", () => this.show(false));
  }

  show(is) {
    document.body.classList.toggle("side", is);
    $("side").inert = !is;
    $("side-open").setAttribute("aria-expanded", String(is));
  }

  /** After a choice, a phone shows the conversation. */
  chosen() {
    if (this.narrow()) this.show(false);
  }

  /** Draws the entries [{id, title, updated}], the latest first. `isLive(id)` says where an answer is being written. */
  draw(entries, current, isLive) {
    if ($("list").querySelector("input")) return; // a title is being written
    const groups = new Map();
    for (const entry of entries) {
      const name = group(entry.updated);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(this.#entry(entry, entry.id === current, isLive(entry.id)));
    }
    const lists = [...groups].map(([name, items]) => make("section", {}, make("h2", {}, t(name)), make("ul", {}, ...items)));
    $("list").replaceChildren(...(lists.length ? lists : [make("p", { class: "help" }, t("noConversations"))]));
  }

  #entry(entry, current, live) {
    const link = make("a", { href: `#/c/${entry.id}`, title: entry.title }, entry.title);
    if (current) link.setAttribute("aria-current", "page");
    link.addEventListener("click", () => this.chosen());
    const item = make("li", { class: live ? "live" : "" }, link);
    item.append(
      make(
        "span",
        { class: "tools" },
        button("edit", "rename", () => void this.#rename(item, entry)),
        button("save", "exportOne", () => void this.actions.save(entry.id)),
        button("trash", "remove", () => void this.actions.remove(entry.id)),
      ),
    );
    return item;
  }

  #rename(item, entry) {
    const field = make("input", { "aria-label": t("rename"), maxlength: 200 });
    field.value = entry.title;
    let ended = false;
    const end = (title) => {
      if (ended) return;
      ended = true;
      field.remove();
      this.actions.rename(entry.id, title.trim() || entry.title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter") end(field.value);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(entry.title);
      }
    });
    field.addEventListener("blur", () => end(field.value));
    item.replaceChildren(field);
    field.select();
    field.focus();
  }
}
