/* Elements, and values as text. Names come from anywhere: they reach the page as text nodes and attributes alone. */

/** Create an element. attributes: true sets an empty one, false and null none; on<event>: a listener. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && isKnown(value)) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== false && isKnown(child)));
  return element;
}

/** Return a name in a direction of its own, so that it turns no text around it. */
export const named = (text, tag = "bdi") => el(tag, { dir: "auto" }, text);

/** Return a table that scrolls inside its own box. Cells are texts or elements; the first of a row names it. */
export function table(label, header, rows, isNumber = () => false) {
  const look = (i) => (isNumber(i) ? "number" : null);
  const title = (content, i) => el("th", { scope: "col", class: look(i) }, content);
  const cell = (content, i) => el(i ? "td" : "th", { scope: i ? null : "row", class: look(i) }, content);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {},
    el("thead", {}, el("tr", {}, header.map(title))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}

export const find = (selector) => document.querySelector(selector);

/** Show text in an element, or hide the element without any. */
export function tell(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

export const isKnown = (value) => value !== null && value !== undefined;

/** Format a fraction in percent, with a space at which no line breaks. */
export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}\u00a0%`;

/** Format a threshold: whole percents, but tenths above 99. */
export const threshold = (value) => percent(value, value > 0.99 ? 1 : 0);

export const whole = (number) => number.toLocaleString("en");

export const count = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;

export function decimal(value, digits = 4) {
  if (!Number.isFinite(value)) return "\u2013";
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/** Format a size of a file, in units of 1,024 as the server's limit is. */
export const bytes = (size) =>
  size < 2 ** 20 ? `${Math.ceil(size / 1024)} kB` : `${Number((size / 2 ** 20).toFixed(1))} MB`;

/** Join texts as a sentence does: a, b and c. */
export const listed = (texts) => [...texts.slice(0, -2), texts.slice(-2).join(" and ")].join(", ");
