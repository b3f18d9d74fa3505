/* The classes that a network knows, searched by the server. */
import { asFailure, ask } from "./api.js";
import { count, el, find, named, tell } from "./dom.js";
import { network } from "./photo.js";

const AT_ONCE = 100, AFTER_MS = 200;

/** Make the search work; return a function that starts it anew, for another network.
 *
 * onClass(head, {id, name}) is called with a class that was chosen, and returns whether anything could be done with it.
 */
export function startClasses(onClass) {
  const search = find("#search"), head = find("#heads select"), table = find("#matches"), more = find("#more"), found = find("#found");
  let control = new AbortController(), timer = 0;

  async function load(offset = 0) {
    control.abort();
    control = new AbortController();
    const { signal } = control;
    if (!head.value) return tell(found, "This network names no classes.");
    try {
      const query = { search: search.value.trim(), offset, limit: AT_ONCE, model: network.name };
      const answer = await ask(`v1/classes/${encodeURIComponent(head.value)}`, { query, signal });
      if (signal.aborted) return;
      if (!offset) table.replaceChildren(headerOf(answer), el("tbody"));
      table.tBodies[0].append(...answer.classes.map(rowOf));
      const { num_classes, matches } = answer, shown = table.tBodies[0].rows.length;
      tell(found, matches === num_classes ? count(num_classes, "class", "classes") : `${matches.toLocaleString("en")} of ${count(num_classes, "class", "classes")}`);
      more.hidden = shown >= matches;
    } catch (error) {
      if (error.name !== "AbortError") tell(found, asFailure(error).message);
    }
  }

  const parentHead = () => network.about.heads[head.value].parent;

  const headerOf = () => el("thead", {}, el("tr", {}, ["name", "id", ...(parentHead() ? [parentHead()] : [])].map((name) => el("th", { scope: "col" }, name))));

  function rowOf(each) {
    const label = each.name || each.id;
    const button = el("button", { type: "button", class: "link", title: "where the network looks for it in the photo", onclick: () => {
      if (!onClass(head.value, { id: each.id, name: label })) tell(found, "Give it a photo first: then this shows where the network looks for the class.");
    } }, named(label));
    return el("tr", {}, el("th", { scope: "row" }, button), el("td", {}, named(each.id)), parentHead() && el("td", {}, each.parent && named(each.parent.name || each.parent.id)));
  }

  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, AFTER_MS);
  });
  head.addEventListener("change", () => load());
  more.addEventListener("click", () => load(table.tBodies[0].rows.length));
  return () => {
    const heads = Object.keys(network.about.heads).filter((name) => network.about.heads[name].kind === "classes");
    head.replaceChildren(...heads.map((name) => el("option", { value: name }, name)));
    head.selectedIndex = heads.length - 1;
    find("#heads").hidden = heads.length < 2;
    load();
  };
}
