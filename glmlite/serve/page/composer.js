/** The field for a message, and the text files and pictures that go with it. */
import { icon, make, toast } from "./elements.js";
import { sends } from "./messages.js";
import { MOST_PICTURES, isPicture, pictureOf } from "./pictures.js";
import { t } from "./strings.js";

const $ = (id) => document.getElementById(id);
const LARGEST_FILE = 1 << 20; // bytes

/** The text in a file's bytes: UTF-8, UTF-16 with its mark, or GB18030; undefined for what is no text. */
export function textOf(bytes) {
  const marks = { "255,254": "utf-16le", "254,255": "utf-16be" };
  const marked = marks[bytes.subarray(0, 2).join()];
  if (!marked && bytes.subarray(0, 8192).includes(0)) return undefined;
  for (const encoding of marked ? [marked] : ["utf-8", "gb18030"]) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      continue;
    }
  }
  return undefined;
}

/** A message as the model reads it: its files, each fenced and named, then what was written. */
export function withFiles(content, files) {
  const blocks = files.map(({ name, text }) => {
    const runs = text.match(/`{3,}/g) ?? [];
    const fence = "`".repeat(runs.reduce((most, run) => Math.max(most, run.length + 1), 3));
    return `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...blocks, content].filter(Boolean).join("\n\n");
}

export class Composer {
  /** send(text, files, pictures) is called with a message; it returns false to keep it in the field. model() is the name
   * of the one that answers. */
  constructor({ send, stop, model }) {
    this.field = $("text");
    this.files = [];
    this.pictures = [];
    this.reading = 0; // files that are not read yet
    this.model = model;
    const submit = () => {
      if (this.reading || !(this.field.value.trim() || this.files.length || this.pictures.length)) return;
      if (send(this.field.value, this.files, this.pictures) !== false) this.clear();
    };
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    this.field.addEventListener("keydown", (event) => {
      if (!sends(event)) return;
      event.preventDefault();
      submit();
    });
    this.field.addEventListener("input", () => this.#grow());
    this.field.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.attach(event.clipboardData.files);
    });
    $("stop").addEventListener("click", stop);
    for (const [open, pick] of [
      ["attach", "pick"],
      ["picture", "pick-picture"],
    ]) {
      $(open).addEventListener("click", () => $(pick).click());
      $(pick).addEventListener("change", async () => {
        await this.attach($(pick).files);
        $(pick).value = "";
      });
    }
    this.#drops();
  }

  clear() {
    this.field.value = "";
    this.files = [];
    this.pictures = [];
    this.#draw();
    this.#grow();
  }

  /** Offers pictures where the model sees them. */
  sees(is) {
    $("picture").hidden = !is;
  }

  /** Shows the stop button while an answer is written. */
  busy(is) {
    const had = document.activeElement === (is ? $("send") : $("stop"));
    $("send").hidden = is;
    $("stop").hidden = !is;
    if (had) this.field.focus();
  }

  /** Adds files to the message; what cannot be is said instead. */
  async attach(files) {
    this.reading++;
    try {
      await this.#read(files);
    } finally {
      this.reading--;
    }
    this.#draw();
    this.field.focus();
  }

  async #read(files) {
    for (const file of files) {
      if (isPicture(file)) {
        await this.#look(file);
        continue;
      }
      if (file.size > LARGEST_FILE) {
        toast(t("fileTooLong", { name: file.name, limit: "1 MB" }));
        continue;
      }
      const text = textOf(new Uint8Array(await file.arrayBuffer()));
      if (text === undefined) toast(t("fileNotText", { name: file.name }));
      else this.files.push({ name: file.name, text: text.replace(/\r\n?/g, "\n") });
    }
  }

  async #look(file) {
    if ($("picture").hidden) return toast(t("pictureUnseen", { name: this.model() }));
    if (this.pictures.length >= MOST_PICTURES) return toast(t("pictureTooMany", { n: MOST_PICTURES }));
    try {
      this.pictures.push(await pictureOf(file));
    } catch {
      toast(t("pictureBad", { name: file.name }));
    }
  }

  #draw() {
    const chip = (held, sign) => {
      const remove = make("button", { type: "button", class: "mini", "aria-label": t("fileRemove", { name: held.name }) });
      remove.append(icon("close"));
      remove.addEventListener("click", () => {
        this.files = this.files.filter((other) => other !== held);
        this.pictures = this.pictures.filter((other) => other !== held);
        this.#draw();
        this.field.focus();
      });
      return make("span", { class: "chip" }, sign, make("span", {}, held.name), remove);
    };
    $("files").replaceChildren(
      ...this.pictures.map((picture) => chip(picture, make("img", { src: picture.url, alt: "" }))),
      ...this.files.map((file) => chip(file, icon("file"))),
    );
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  #drops() {
    const shown = (is) => document.body.classList.toggle("dropping", is);
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
    addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      shown(true);
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && shown(false));
    addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      shown(false);
      this.attach(event.dataTransfer.files);
    });
  }
}
