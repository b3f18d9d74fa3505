/* The page: photos come in, tiles choose one of them, the view shows its answers. */
import { asFailure, ask } from "./api.js";
import { showAbout } from "./about.js";
import { isSure } from "./answers.js";
import { showClasses, startClasses } from "./classes.js";
import { count, decimal, el, find, named, percent, tell } from "./dom.js";
import { network, Photo } from "./photo.js";
import { View } from "./view.js";

const DEFAULT_ACCURACY = 0.95;
let photos = []; // each {photo, view, tile}
let chosen = null; // one of them

/** Ask what the network is, fill in the page, and ask again for photos that are there. name: of one of several. */
async function start(name = null) {
  find("#trouble").hidden = true;
  try {
    const about = await ask("v1/model", { query: { model: name } });
    Object.assign(network, { about, name: about.name });
  } catch (error) {
    tell(find("#trouble p"), asFailure(error).message);
    find("#trouble").hidden = false;
    return;
  }
  const { models, name: current } = network.about;
  showAbout(network.about);
  showClasses();
  find("#models").hidden = models.length < 2;
  find("#models select").replaceChildren(
    ...models.map((each) => el("option", { value: each, selected: each === current }, each)));
  showBelief();
  for (const entry of photos) {
    entry.view?.close();
    entry.view = null;
    entry.photo.box = null;
    entry.photo.predict();
  }
  if (chosen) choose(chosen);
}

/** Let the user choose how often an answer that is called sure has to be right. */
function showBelief() {
  const points = Object.values(network.about.operating_points ?? {}).flat();
  const accuracies = [...new Set(points.map(({ accuracy }) => accuracy))].sort((a, b) => a - b);
  if (!accuracies.length) {
    const isChosen = Object.keys(network.about.operating_points ?? {}).length > 0; // none is reached
    const text = isChosen ? "No probability sets right answers apart: check every one."
      : "From which probability on an answer can be believed is not known here. This finds it out: ";
    const command = isChosen ? "" : el("code", {}, "carvision evaluate RUN");
    find("#belief").replaceChildren(el("p", { class: "note" }, text, command));
    return;
  }
  if (!accuracies.includes(network.accuracy)) {
    network.accuracy = accuracies.includes(DEFAULT_ACCURACY) ? DEFAULT_ACCURACY : accuracies.at(-1);
  }
  const select = el("select", {}, accuracies.map((value) =>
    el("option", { value, selected: value === network.accuracy }, percent(value, 0))));
  select.addEventListener("change", () => {
    network.accuracy = Number(select.value);
    for (const entry of photos) {
      entry.view?.update();
      showTile(entry);
    }
  });
  find("#belief").replaceChildren(el("label", {}, "Call an answer sure if ", select, " of such answers are right"));
}

// Photos come, are chosen, and go
function add(files) {
  tell(find("#refused"), null);
  if (!network.about) return tell(find("#refused"), "The server has not answered yet: wait a moment, then try again.");
  const added = [...files].map((file) => {
    const entry = { photo: new Photo(file), view: null, tile: null };
    entry.photo.addEventListener("change", () => {
      showTile(entry);
      announce(entry.photo);
    });
    return entry;
  });
  if (!added.length) return;
  photos.push(...added);
  showTiles();
  choose(added[0]);
  const { top } = find("#detail").getBoundingClientRect();
  if (top < 0 || top > 0.7 * innerHeight) find("#photos").scrollIntoView();
  for (const { photo } of added) photo.predict();
}

function remove(entries) {
  const at = photos.indexOf(entries[0]);
  for (const entry of entries) entry.photo.dispose();
  photos = photos.filter((entry) => !entries.includes(entry));
  showTiles();
  choose(photos[Math.min(at, photos.length - 1)] ?? null);
  (photos.length > 1 ? chosen.tile.firstElementChild : find("#pick")).focus();
}

function choose(entry) {
  chosen = entry;
  if (entry) entry.view ??= new View(entry.photo, () => remove([entry]));
  find("#detail").replaceChildren(...(entry ? [entry.view.element] : []));
  photos.forEach(showTile);
}

function showTiles() {
  find("#tiles").replaceChildren(...photos.map((entry) => (entry.tile ??= createTile(entry))));
  find("#tiles").hidden = find("#clear").hidden = photos.length < 2;
  find("#belief").hidden = !photos.length;
  find("#drop").classList.toggle("small", photos.length > 0);
}

function createTile(entry) {
  const image = el("img", { alt: "", loading: "lazy", decoding: "async", src: entry.photo.url });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "unshown" }, "no preview")));
  const text = el("span", { class: "tile-text" });
  return el("li", {}, el("button", { type: "button", onclick: () => choose(entry) }, image, text));
}

function showTile(entry) {
  if (!entry.tile) return;
  const { text, look } = inShort(entry.photo), button = entry.tile.firstElementChild;
  const line = button.querySelector(".tile-text");
  line.replaceChildren(...text);
  line.className = `tile-text ${look}`;
  button.setAttribute("aria-pressed", entry === chosen);
  button.setAttribute("aria-label", `${entry.photo.name}: ${line.textContent}`);
}

/** Return what is known of a photo by its finest head: {text: parts of a line, look: a class}. */
function inShort({ state, answer, failure }) {
  if (failure && state === "failed") return { text: ["can't be answered"], look: "wrong" };
  if (!answer) return { text: [state === "waiting" ? "waiting" : "asking"], look: "note" };
  const head = Object.keys(answer.heads).findLast((each) => answer.heads[each].length);
  if (!head) {
    const numbers = Object.entries(answer.heads).map(([name, { value, unit }]) =>
      `${name} ${decimal(value)} ${unit ?? ""}`);
    return { text: [numbers.join(", ")], look: "" };
  }
  const [{ id, name, prob }] = answer.heads[head], isDoubtful = isSure(head, answer.heads[head]) === false;
  const certainty = el("span", {}, ` ${percent(prob, 0)}${isDoubtful ? ", not sure" : ""}`);
  return { text: [named(name || id), certainty], look: isDoubtful ? "unsure" : "" };
}

/** Tell those who can't see it what has been answered. */
function announce(photo) {
  const isDone = ({ state }) => state === "done" || state === "failed";
  if (!photos.every((entry) => isDone(entry.photo))) return;
  const answer = photo.failure?.message ?? el("span", {}, inShort(photo).text).textContent;
  const text = photos.length > 1 ? `${count(photos.length, "photo")} answered.` : `${photo.name}: ${answer}`;
  find("#status").textContent = text;
}

// Ways in: choosing, the camera, the clipboard, dropping
for (const [button, input] of [["#pick", "#files"], ["#take", "#camera"]]) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData, isText = event.target.closest?.("input");
  if (files.length) add(files);
  else if (!isText) tell(find("#refused"), "The clipboard holds no photo: copy the picture itself, not its address.");
});
let depth = 0; // of the elements that the pointer has entered
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // else the browser opens the file in place of this page
    depth = { dragenter: depth + 1, dragover: depth, dragleave: depth - 1, drop: 0 }[type];
    document.body.classList.toggle("dragging", depth > 0);
    if (type !== "drop") return;
    const { files } = event.dataTransfer;
    if (files.length) add(files);
    else tell(find("#refused"), "That was no photo but a link or text: save the photo, then drop its file.");
  });
}
find("#tiles").addEventListener("keydown", (event) => {
  const at = photos.findIndex(({ tile }) => tile.contains(event.target));
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: photos.length - 1 }[event.key];
  if (event.key === "Delete" && at >= 0) remove([photos[at]]);
  else if (photos[to]) {
    choose(photos[to]);
    photos[to].tile.firstElementChild.focus();
  } else return;
  event.preventDefault();
});
find("#clear").addEventListener("click", () => remove(photos));
find("#models select").addEventListener("change", (event) => start(event.target.value));
find("#trouble button").addEventListener("click", () => start(network.name));
startClasses((head, found) => {
  if (chosen?.photo.state !== "done") return false;
  chosen.view.explain(head, found);
  chosen.view.element.scrollIntoView();
  return true;
});
document.body.classList.toggle("touch", navigator.maxTouchPoints > 0);
start();
