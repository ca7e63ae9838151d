/** The search: a field and what it finds, with "new chat" among it. Arrow keys choose, Enter opens. */
import { icon, make } from "./elements.js";
import { label, t } from "./strings.js";

const $ = (id) => document.getElementById(id);

export class Palette {
  /** search(words) -> promise of entries; open(id) and create() do what is chosen. */
  constructor({ search, open, create }) {
    this.search = search;
    this.choices = []; // {act, element}
    this.active = 0;
    this.does = { open, create };
    this.dialog = $("palette");
    this.query = $("query");
    this.query.addEventListener("input", () => this.#find());
    this.query.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  show() {
    label(this.dialog);
    this.query.value = "";
    if (!this.dialog.open) this.dialog.showModal();
    this.query.focus();
    this.#find();
  }

  async #find() {
    const words = this.query.value.trim();
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const found = await this.search(words);
    if (turn !== this.turn) return; // more was typed meanwhile
    const create = { title: t("newChat"), act: this.does.create, image: "plus" };
    const entries = found.map((entry) => ({ ...entry, act: () => this.does.open(entry.id) }));
    const choices = words ? [...entries, create] : [create, ...entries];
    this.choices = choices.map((choice, i) => {
      const item = make("li", { role: "option", id: `found-${i}` }, make("strong", {}, choice.title));
      if (choice.image) item.prepend(icon(choice.image));
      if (choice.snippet && choice.snippet !== choice.title) item.append(make("small", {}, choice.snippet));
      item.addEventListener("click", () => this.#choose(i));
      return { act: choice.act, element: item };
    });
    $("found").replaceChildren(...this.choices.map((choice) => choice.element));
    if (words && !found.length) $("found").prepend(make("li", { class: "nothing", role: "presentation" }, t("searchNothing")));
    this.#mark(0);
  }

  #mark(at) {
    this.active = (at + this.choices.length) % this.choices.length;
    this.choices.forEach(({ element }, i) => element.setAttribute("aria-selected", String(i === this.active)));
    const { element } = this.choices[this.active];
    this.query.setAttribute("aria-activedescendant", element.id);
    element.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.choices.length) this.#mark(this.active + step);
    else if (event.key === "Enter" && this.choices.length) this.#choose(this.active);
    else return;
    event.preventDefault();
  }

  #choose(at) {
    this.dialog.close();
    this.choices[at].act();
  }
}
