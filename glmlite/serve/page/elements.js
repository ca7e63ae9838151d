/** Small elements that several parts of the page make. */
import { t } from "./strings.js";

/** An element: make("p", {class: "x", hidden: true}, "text", child). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button of an icon, named by a text of the table. If `act` returns a string, that is copied, and the button says so. */
export function button(image, name, act) {
  const made = make("button", { type: "button", class: "mini", "data-t-label": name, "aria-label": t(name), title: t(name) });
  made.append(icon(image));
  made.addEventListener("click", async () => {
    const text = act();
    if (typeof text !== "string" || !(await copy(text))) return;
    made.replaceChildren(icon("check"));
    say(t("copied"));
    setTimeout(() => made.replaceChildren(icon(image)), 1500);
  });
  return made;
}

/** Puts a text on the clipboard; whether that went well. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, and not on localhost, there is no clipboard object.
    const area = make("textarea", { class: "away", readonly: true });
    area.value = text;
    const holder = document.querySelector("dialog[open]") ?? document.body;
    holder.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** Has a screen reader say it. */
export function say(text) {
  document.getElementById("live").textContent = text;
}

let hiding;

/** Shows a line for a few seconds, with a button if there is something to do about it. */
export function toast(text, label, act) {
  const box = document.getElementById("toast");
  box.replaceChildren(make("span", {}, text));
  const hide = () => box.classList.remove("shown");
  if (label) {
    const doing = make("button", { type: "button", onclick: () => (hide(), act()) }, label);
    box.append(doing);
  }
  box.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(hide, label ? 8000 : 4000);
}

/** Gives the browser a file to save. */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
