/**
 * Markdown as elements. What a model writes is not trusted: its HTML is shown as text, everything that becomes HTML
 * goes through `clean`, and nothing is fetched: a remote image is a link.
 */
import { Marked } from "./vendor/marked/marked.esm.js";
import "./vendor/dompurify/purify.min.js";
import hljs from "./vendor/highlight/core.min.js";
import { t } from "./strings.js";
import { button, make } from "./elements.js";

// ---- the one door to HTML ----------------------------------------------------------------------------------------

const ALLOWED = {
  ALLOWED_TAGS: (
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i img input kbd li mark ol p pre s small span strong sub sup " +
    "table tbody td th thead tr u ul"
  ).split(" "),
  ALLOWED_ATTR: ["align", "alt", "checked", "class", "data-math", "disabled", "href", "src", "start", "title", "type"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const clean = (html) => window.DOMPurify.sanitize(html, ALLOWED);

const ESCAPED = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (c) => ESCAPED[c]);

// ---- Markdown ----------------------------------------------------------------------------------------------------

// Tags that models use for want of Markdown, as they stand in escaped text; all others stay text.
const HARMLESS = /&lt;(\/?(?:b|br|i|kbd|mark|s|small|sub|sup|u)\s*\/?)&gt;/gi;
const OUTSIDE = /^(?:https?:\/\/|mailto:)/i;
const INSIDE = /^(?:data:image\/(?:png|jpeg|gif|webp|avif);|blob:)/i;
const LONGEST_FORMULA = 4000; // what looks for a formula's end stops there

const math = (text, display) => `<span class="math" data-math="${display ? "block" : "inline"}">${escape(text)}</span>`;

const pattern = (source) => new RegExp(source.replaceAll("…", `{1,${LONGEST_FORMULA}}?`), "s");
const BLOCK_MATH = pattern(String.raw`^ {0,3}(?:\$\$(.…)\$\$|\\\[(.…)\\\])[ \t]*(?:\n+|$)`);
const DISPLAY_MATH = pattern(String.raw`^(?:\$\$([^$]…)\$\$|\\\[(.…)\\\])`);
const INLINE_MATH = pattern(String.raw`^(?:\$(?![\s$])((?:\\.|[^\\$\n])…)(?<!\s)\$(?!\d)|\\\((.…)\\\))`);

// Reading emphasis takes a time that grows with the square of a paragraph's length: a longer one stays plain.
const LONGEST_PARAGRAPH = 10_000; // characters
const NO_PARAGRAPH = /^ {0,3}(?:```|~~~|[-*+] |\d+[.)] |[|>])/;

const extensions = [
  {
    name: "long",
    level: "block",
    tokenizer(text) {
      const end = text.search(/\n[ \t]*\n|\n {0,3}(?:```|~~~)/);
      const raw = end < 0 ? text : text.slice(0, end);
      return raw.length > LONGEST_PARAGRAPH && !NO_PARAGRAPH.test(raw) ? { type: "long", raw, text: raw } : undefined;
    },
    renderer: (token) => `<p class="plain">${escape(token.text)}</p>`,
  },
  {
    name: "blockMath",
    level: "block",
    start: (text) => text.match(/\n {0,3}(?:\$\$|\\\[)/)?.index,
    tokenizer(text) {
      const found = BLOCK_MATH.exec(text);
      return found ? { type: "blockMath", raw: found[0], text: found[1] ?? found[2] } : undefined;
    },
    renderer: (token) => `<p>${math(token.text.trim(), true)}</p>`,
  },
  {
    name: "inlineMath",
    level: "inline",
    start: (text) => text.match(/\$|\\[([]/)?.index,
    tokenizer(text) {
      const display = DISPLAY_MATH.exec(text);
      const found = display ?? INLINE_MATH.exec(text);
      return found ? { type: "inlineMath", raw: found[0], text: found[1] ?? found[2], display: Boolean(display) } : undefined;
    },
    renderer: (token) => math(token.text.trim(), token.display),
  },
];

const markdown = new Marked({
  breaks: true,
  renderer: {
    html({ text, block }) {
      const shown = escape(text).replace(HARMLESS, "<$1>");
      return block ? `<p class="plain">${shown.trim()}</p>` : shown;
    },
    link({ href, title, tokens }) {
      const text = this.parser.parseInline(tokens);
      return OUTSIDE.test(href) ? `<a href="${escape(href)}" title="${escape(title ?? href)}">${text}</a>` : text;
    },
    image({ href, text }) {
      if (INSIDE.test(href)) return `<img alt="${escape(text)}" src="${escape(href)}">`;
      const words = `${t("imageNotLoaded")}: ${escape(text || href)}`;
      return OUTSIDE.test(href) ? `<a class="remote" href="${escape(href)}" title="${escape(href)}">${words}</a>` : words;
    },
    code: ({ text, lang }) => `<pre><code class="language-${escape(languageOf(lang))}">${escape(text)}\n</code></pre>`,
  },
});
markdown.use({ extensions });

// ---- code --------------------------------------------------------------------------------------------------------

const LANGUAGES = {
  bash: "sh zsh shell-script",
  c: "h",
  cpp: "c++ cc cxx hpp hxx cu cuda",
  csharp: "cs c#",
  css: "",
  diff: "patch",
  dockerfile: "docker",
  go: "golang",
  ini: "toml",
  java: "",
  javascript: "js jsx mjs cjs",
  json: "jsonc json5 jsonl",
  kotlin: "kt kts",
  lua: "",
  makefile: "make mk",
  markdown: "md",
  php: "",
  powershell: "ps ps1 pwsh",
  python: "py python3 pyi",
  r: "",
  ruby: "rb",
  rust: "rs",
  shell: "console shellsession",
  sql: "sqlite mysql postgresql",
  swift: "",
  typescript: "ts tsx mts cts",
  xml: "html xhtml svg vue",
  yaml: "yml",
};
const FILES = new Map(
  Object.entries(LANGUAGES).flatMap(([name, others]) => [name, ...others.split(" ")].map((alias) => [alias, name])),
);
const LONGEST_COLOURED = 50_000; // characters
const loading = new Map();

const languageOf = (info) => (info ?? "").trim().split(/[\s{:,]/, 1)[0].toLowerCase();

/** Colours a code element, at once if its language is loaded. */
async function colour(code, language) {
  const name = FILES.get(language);
  const text = code.textContent;
  if (!name || text.length > LONGEST_COLOURED) return;
  if (!hljs.getLanguage(name)) {
    if (!loading.has(name)) loading.set(name, import(`./vendor/highlight/languages/${name}.min.js`));
    hljs.registerLanguage(name, (await loading.get(name)).default);
    if (code.textContent !== text) return; // it grew meanwhile, and was coloured again
  }
  code.replaceChildren(clean(hljs.highlight(text, { language: name, ignoreIllegals: true }).value));
}

/** A block of code with its language and a copy button. */
export function codeBlock(text, language) {
  const box = document.createElement("figure");
  box.className = "code";
  const head = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language;
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // so that keys can scroll it
  const code = document.createElement("code");
  head.append(name, button("copy", "copyCode", () => code.textContent.replace(/\n$/, "")));
  pre.append(code);
  box.append(head, pre);
  setCode(box, text, language);
  return box;
}

function setCode(box, text, language) {
  const code = box.querySelector("code");
  code.textContent = text;
  colour(code, language);
}

// ---- formulas ----------------------------------------------------------------------------------------------------

const KATEX = {
  throwOnError: true,
  strict: "ignore",
  trust: false,
  maxExpand: 500,
  maxSize: 20,
  // As MathML, which is for screen readers, these two have inline styles, which the page's policy forbids.
  macros: { "\\pmb": "\\boldsymbol{#1}", "\\fcolorbox": "\\@firstoftwo{\\boxed{\\text{#3}}}{#1#2}" },
};
let katex;

async function loadKatex() {
  const style = make("link", { rel: "stylesheet", href: "vendor/katex/katex.min.css" });
  document.head.append(style);
  await Promise.all([import("./vendor/katex/katex.min.js"), new Promise((resolve) => (style.onload = style.onerror = resolve))]);
  return window.katex;
}

/** Sets the formulas below `root`; one that is wrong stays as it was written. */
async function typeset(root) {
  const found = root.querySelectorAll("[data-math]");
  if (!found.length) return;
  katex ??= loadKatex();
  const { render } = await katex;
  for (const element of found) {
    const text = element.textContent;
    const display = element.dataset.math === "block";
    element.removeAttribute("data-math");
    const formula = document.createElement("span");
    try {
      render(text, formula, { ...KATEX, macros: { ...KATEX.macros }, displayMode: display });
      element.classList.toggle("display", display);
      element.replaceChildren(...formula.childNodes);
    } catch {
      element.classList.add("wrong");
    }
  }
}

// ---- blocks ------------------------------------------------------------------------------------------------------

/** The elements of one block of Markdown. */
function elements(token) {
  if (token.type === "code") return codeBlock(`${token.text}\n`, languageOf(token.lang));
  const fragment = clean(markdown.parser([token]));
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.firstElementChild;
    pre.replaceWith(codeBlock(code.textContent, code.className.replace("language-", "")));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  return fragment;
}

const LONGEST_RICH = 400_000; // characters; what is longer stays plain

/** Shows a text that grows. Blocks that are complete are not touched again; images come with the end. */
export class Growing {
  constructor(element) {
    this.element = element;
    this.blocks = []; // {raw, element, box?}
    this.read = 0; // characters in complete blocks
    this.complete = 0; // complete blocks
  }

  /** Shows `text`, which begins with what was shown before; `last` when no more comes. */
  update(text, last) {
    text = text.replace(/\r\n?/g, "\n");
    try {
      if (text.length > LONGEST_RICH) throw new RangeError("too long");
      this.#show(text, last);
    } catch {
      this.#plain(text); // too long, or nested too deep for a recursive parser
    }
  }

  #show(text, last) {
    // At the end all is read once more: what a link refers to may stand below it.
    const from = last ? 0 : this.read;
    const first = last ? 0 : this.complete;
    const tokens = markdown.lexer(text.slice(from));
    const again = last && Object.keys(tokens.links).length > 0;
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    blocks.forEach((token, i) => this.#block(first + i, token, last, again));
    for (const block of this.blocks.splice(first + blocks.length)) block.element.remove();
    // What came before the last block cannot change any more, if the lexer's pieces add up to the text.
    const end = blocks.length > 1 ? tokens.indexOf(blocks[blocks.length - 1]) : 0;
    const length = (pieces) => pieces.reduce((sum, token) => sum + token.raw.length, 0);
    if (last || !end || length(tokens) !== text.length - from) return;
    this.read = from + length(tokens.slice(0, end));
    this.complete = first + blocks.length - 1;
  }

  #block(at, token, last, again) {
    let block = this.blocks[at];
    if (block && block.raw === token.raw && !again && !(last && block.held)) return;
    if (!block) {
      block = this.blocks[at] = { element: document.createElement("div") };
      block.element.className = "block";
      this.element.append(block.element);
    }
    const language = token.type === "code" ? languageOf(token.lang) : undefined;
    if (block.box && block.language === language) setCode(block.box, `${token.text}\n`, language);
    else {
      const made = elements(token);
      block.held = !last && holdImages(made);
      block.element.replaceChildren(made);
      block.box = token.type === "code" ? made : undefined;
      block.language = language;
      typeset(block.element);
    }
    block.raw = token.raw;
  }

  #plain(text) {
    const block = document.createElement("p");
    block.className = "plain";
    block.textContent = text;
    this.element.replaceChildren(block);
    this.blocks = [];
    this.read = this.complete = 0;
  }
}

/** Takes the images out until the text is complete; whether there were any. */
function holdImages(made) {
  const images = made.querySelectorAll("img");
  for (const image of images) image.replaceWith(`[${t("imageNotLoaded")}]`);
  return images.length > 0;
}

/** A text that is complete, as an element. */
export function complete(text) {
  const element = document.createElement("div");
  element.className = "prose";
  new Growing(element).update(text, true);
  return element;
}
