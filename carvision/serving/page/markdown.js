/* The model card's Markdown as elements: headings, paragraphs, lists, tables, code. HTML in it stays text. */
import { el } from "./dom.js";

const INLINE = /\\([!-/:-@[-`{-~])|(`+)(.+?)\2(?!`)|\*\*(.+?)\*\*|\*(?!\s)(.+?)\*|\[([^\]]*)\]\((https?:\/\/[^\s)]+)\)/;
const SPECIAL = /^(#{1,6}\s|```|[-*]\s|\||<\/?(details|summary)>?)/;

/** Return the elements of a text. Front matter is left out. */
export function markdown(text) {
  const lines = text.replace(/^---\n[^]*?\n---\n/, "").split(/\r?\n/), parts = [];
  while (lines.length) {
    const line = lines.shift(), heading = /^(#{1,6})\s+(.*)/.exec(line), fence = /^(`{3,})/.exec(line);
    if (heading) parts.push(el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
    else if (fence) parts.push(el("pre", { tabindex: "0" }, takeWhile(lines, (each) => !each.startsWith(fence[1])).join("\n"))) && lines.shift();
    else if (/^[-*]\s/.test(line)) parts.push(el("ul", {}, [line, ...takeWhile(lines, (each) => /^[-*]\s/.test(each) || (!each.trim() && /^[-*]\s/.test(lines[1] ?? "")))].filter((each) => each.trim()).map((item) => el("li", {}, inline(item.slice(2))))));
    else if (line.startsWith("|")) parts.push(table([line, ...takeWhile(lines, (each) => each.startsWith("|"))]));
    else if (/^<\/?(details|summary)>/.test(line)) parts.push(el("p", {}, line.replaceAll(/<\/?(details|summary)>/g, "")));
    else if (line.trim()) parts.push(el("p", {}, inline([line, ...takeWhile(lines, (each) => each.trim() && !SPECIAL.test(each))].join(" "))));
  }
  return parts.filter((part) => part.hasChildNodes());
}

function takeWhile(lines, test) {
  const end = lines.findIndex((line) => !test(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function table([header, rule, ...rows]) {
  const cells = (line) => line.replace(/^\|/, "").replace(/\|\s*$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const isNumber = cells(rule ?? "").map((cell) => cell.endsWith(":"));
  const row = (line, tag) => el("tr", {}, cells(line).map((cell, i) => el(tag, { class: isNumber[i] ? "number" : null }, inline(cell))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table" },
    el("table", {}, el("thead", {}, row(header, "th")), el("tbody", {}, rows.map((line) => row(line, "td")))));
}

function inline(text) {
  const parts = [];
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    const [, escaped, , code, strong, emphasis, label, href] = found;
    parts.push(text.slice(0, found.index), escaped ?? (code !== undefined ? el("code", {}, code.trim())
      : strong !== undefined ? el("strong", {}, inline(strong)) : emphasis !== undefined ? el("em", {}, inline(emphasis))
      : el("a", { href, rel: "noreferrer" }, inline(label))));
  }
  return [...parts, text];
}
