/* The model card's Markdown as elements: headings, paragraphs, lists, tables, code. HTML in it stays text. */
import { el, table } from "./dom.js";

const INLINE = /\\([!-/:-@[-`{-~])|(`+)(.+?)\2(?!`)|\*\*(.+?)\*\*|\*(?!\s)(.+?)\*|\[([^\]]*)\]\((https?:\/\/[^\s)]+)\)/;
const HEADING = /^(#{1,6})\s+(.*)/, FENCE = /^(`{3,})/, ITEM = /^[-*]\s+/;
const FOLDED = /<\/?(details|summary)>/g; // the card's configuration; shown unfolded

/** Return the elements of a text. */
export function markdown(text) {
  const lines = text.replaceAll(FOLDED, "").split(/\r?\n/), parts = [];
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (HEADING.test(line)) parts.push(heading(lines.shift()));
    else if (FENCE.test(line)) parts.push(codeBlock(lines));
    else if (ITEM.test(line)) parts.push(list(takeWhile(lines, (each) => ITEM.test(each))));
    else if (line.startsWith("|")) parts.push(tableOf(takeWhile(lines, (each) => each.startsWith("|"))));
    else parts.push(el("p", {}, inline(takeWhile(lines, isText).join(" "))));
  }
  return parts;
}

const isText = (line) => line.trim() && ![HEADING, FENCE, ITEM, /^\|/].some((start) => start.test(line));

/** Remove the first lines that pass the test, and return them. */
function takeWhile(lines, test) {
  const end = lines.findIndex((line) => !test(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function heading(line) {
  const [, marks, text] = HEADING.exec(line);
  return el(`h${Math.min(6, marks.length + 2)}`, {}, inline(text)); // below the headings of the page
}

function codeBlock(lines) {
  const [fence] = FENCE.exec(lines.shift());
  const code = takeWhile(lines, (line) => !line.startsWith(fence));
  lines.shift();
  return el("pre", { tabindex: "0" }, code.join("\n"));
}

const list = (items) => el("ul", {}, items.map((item) => el("li", {}, inline(item.replace(ITEM, "")))));

function tableOf([header, rule = "", ...rows]) {
  const cells = (line) => line.replace(/^\|/, "").replace(/\|\s*$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const isNumber = cells(rule).map((cell) => cell.endsWith(":"));
  const shown = (line) => cells(line).map(inline);
  return table("table", shown(header), rows.map(shown), (i) => isNumber[i]);
}

function inline(text) {
  const parts = [];
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    const [, escaped, , code, strong, emphasis, label, href] = found;
    parts.push(text.slice(0, found.index));
    if (escaped !== undefined) parts.push(escaped);
    else if (code !== undefined) parts.push(el("code", {}, code.trim()));
    else if (strong !== undefined) parts.push(el("strong", {}, inline(strong)));
    else if (emphasis !== undefined) parts.push(el("em", {}, inline(emphasis)));
    else parts.push(el("a", { href, rel: "noreferrer" }, inline(label)));
  }
  return [...parts, text];
}
