/* The classes that a network knows, searched by the server. */
import { asFailure, ask } from "./api.js";
import { count, el, find, named, tell, whole } from "./dom.js";
import { network } from "./photo.js";

const AT_ONCE = 100, AFTER_MS = 200;
const WITHOUT_PHOTO = "Give it a photo first: then this shows where the network looks for the class.";
let control = new AbortController(), timer = 0;
let onClass = () => false;

/** Make the search work. whenChosen(head, {id, name}) returns whether it could do anything with a class. */
export function startClasses(whenChosen) {
  onClass = whenChosen;
  find("#search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, AFTER_MS);
  });
  find("#heads select").addEventListener("change", () => load());
  find("#more").addEventListener("click", () => load(find("#matches").tBodies[0].rows.length));
}

/** Start the search anew, for another network. */
export function showClasses() {
  const heads = Object.keys(network.about.heads).filter((head) => network.about.heads[head].kind === "classes");
  const select = find("#heads select");
  select.replaceChildren(...heads.map((head) => el("option", { value: head }, head)));
  select.selectedIndex = heads.length - 1;
  find("#heads").hidden = heads.length < 2;
  load();
}

async function load(offset = 0) {
  control.abort();
  control = new AbortController();
  const { signal } = control, head = find("#heads select").value, matches = find("#matches");
  if (!head) return tell(find("#found"), "This network names no classes.");
  const { parent } = network.about.heads[head];
  try {
    const query = { search: find("#search").value.trim(), offset, limit: AT_ONCE, model: network.name };
    const answer = await ask(`v1/classes/${encodeURIComponent(head)}`, { query, signal });
    if (signal.aborted) return;
    if (!offset) {
      const titles = ["name", "id", ...(parent ? [parent] : [])].map((title) => el("th", { scope: "col" }, title));
      matches.replaceChildren(el("thead", {}, el("tr", {}, titles)), el("tbody"));
    }
    matches.tBodies[0].append(...answer.classes.map((each) => rowOf(each, head, parent)));
    const all = count(answer.num_classes, "class", "classes");
    tell(find("#found"), answer.matches === answer.num_classes ? all : `${whole(answer.matches)} of ${all}`);
    find("#more").hidden = matches.tBodies[0].rows.length >= answer.matches;
  } catch (error) {
    if (error.name !== "AbortError") tell(find("#found"), asFailure(error).message);
  }
}

function rowOf({ id, name, parent: own }, head, parent) {
  const label = name || id;
  const choose = () => onClass(head, { id, name: label }) || tell(find("#found"), WITHOUT_PHOTO);
  const button = el("button", { type: "button", class: "link", onclick: choose }, named(label));
  return el("tr", {}, el("th", { scope: "row" }, button), el("td", {}, named(id)),
    parent && el("td", {}, own && named(own.name || own.id)));
}
