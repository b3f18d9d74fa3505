/* The page: photos come in, tiles choose one of them, the view shows its answers. */
import { asFailure, ask } from "./api.js";
import { showAbout } from "./about.js";
import { startClasses } from "./classes.js";
import { count, el, find, named, percent, tell } from "./dom.js";
import { network, Photo } from "./photo.js";
import { isSure, View } from "./view.js";

const DEFAULT_ACCURACY = 0.95;
let photos = []; // each {photo, view, tile}
let chosen = null; // one of them
const showClasses = startClasses((head, found) => {
  if (chosen?.photo.state !== "done") return false;
  chosen.view.explain(head, found);
  chosen.view.element.scrollIntoView({ block: "start" });
  return true;
});

// The network
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
  const { about } = network;
  showAbout(about);
  showClasses();
  const select = find("#models select");
  select.replaceChildren(...about.models.map((each) => el("option", { value: each, selected: each === about.name }, each)));
  find("#models").hidden = about.models.length < 2;
  const accuracies = [...new Set(Object.values(about.operating_points ?? {}).flat().map((point) => point.accuracy))].sort((a, b) => a - b);
  if (!accuracies.includes(network.accuracy)) {
    network.accuracy = accuracies.includes(DEFAULT_ACCURACY) ? DEFAULT_ACCURACY : accuracies.at(-1) ?? null;
  }
  showBelief(accuracies);
  for (const entry of photos) entry.view = null;
  for (const { photo } of photos) photo.predict();
  if (chosen) choose(chosen);
}

/** Let the user choose how often a sure answer has to be right. */
function showBelief(accuracies) {
  const belief = find("#belief");
  if (!accuracies.length) {
    belief.replaceChildren(el("p", { class: "note" }, "From which probability on an answer can be believed is not known for this network; ", el("code", {}, "carvision evaluate RUN --calibrate"), " finds it out."));
    return;
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
  belief.replaceChildren(el("label", {}, "Call an answer sure if ", select, " of such answers are right"));
}

// Photos come in
function add(files) {
  tell(find("#refused"), null);
  if (!network.about) return tell(find("#refused"), "The server has not answered yet: wait a moment, then try again.");
  const added = [...files].map((file) => {
    const entry = { photo: new Photo(file), view: null, tile: null };
    entry.photo.addEventListener("change", () => {
      showTile(entry);
      announce(entry);
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
  const at = Math.max(0, photos.indexOf(entries[0]));
  for (const entry of entries) entry.photo.dispose();
  photos = photos.filter((entry) => !entries.includes(entry));
  showTiles();
  choose(photos[Math.min(at, photos.length - 1)] ?? null);
  (chosen?.tile.querySelector("button") ?? find("#pick")).focus();
}

function choose(entry) {
  chosen = entry;
  if (entry) entry.view ??= new View(entry.photo, () => remove([entry]));
  find("#detail").replaceChildren(...(entry ? [entry.view.element] : []));
  for (const each of photos) showTile(each);
}

function showTiles() {
  find("#tiles").replaceChildren(...photos.map((entry) => (entry.tile ??= createTile(entry))));
  find("#tiles").hidden = photos.length < 2;
  find("#clear").hidden = photos.length < 2;
  find("#belief").hidden = !photos.length;
  find("#drop").classList.toggle("small", photos.length > 0);
}

function createTile(entry) {
  const image = el("img", { alt: "", loading: "lazy", decoding: "async", src: entry.photo.url });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "unshown" }, "no preview")));
  const button = el("button", { type: "button", onclick: () => choose(entry) }, image, el("span", { class: "tile-text" }));
  return el("li", {}, button);
}

/** Return the finest head with classes, by which a photo is named in short. */
const mainHead = () => Object.entries(network.about.heads).filter(([, { kind }]) => kind === "classes").map(([head]) => head).at(-1);

function shortAnswer({ state, answer, failure }) {
  if (failure && state === "failed") return { text: ["can't be answered"], look: "wrong" };
  if (!answer) return { text: [state === "waiting" ? "waiting" : "asking"], look: "note" };
  const head = mainHead(), best = answer.heads[head]?.[0];
  if (!best) return { text: Object.entries(answer.heads).map(([name, { value, unit }]) => `${name} ${Math.round(value)} ${unit ?? ""}`), look: "" };
  const doubtful = isSure(head, answer.heads[head]) === false;
  return { text: [named(best.name || best.id), ` ${percent(best.prob, 0)}`, doubtful ? ", not sure" : ""], look: doubtful ? "unsure" : "" };
}

function showTile(entry) {
  if (!entry.tile) return;
  const { text, look } = shortAnswer(entry.photo), button = entry.tile.firstElementChild;
  const line = button.querySelector(".tile-text");
  line.replaceChildren(...text);
  line.className = `tile-text ${look}`;
  button.setAttribute("aria-pressed", entry === chosen);
  button.setAttribute("aria-label", `${entry.photo.name}: ${line.textContent}`);
}

/** Tell those who can't see it what has been answered. */
function announce({ photo }) {
  const numOpen = photos.filter((entry) => !["done", "failed"].includes(entry.photo.state)).length;
  if (!["done", "failed"].includes(photo.state) || (photos.length > 1 && numOpen)) return;
  const said = el("span", {}, shortAnswer(photo).text).textContent;
  find("#status").textContent = photos.length > 1 ? `${count(photos.length, "photo")} answered.` : `${photo.name}: ${photo.failure?.message ?? said}`;
}

// Ways in: choosing, the camera, the clipboard, dropping
for (const [button, input] of [["#pick", "#files"], ["#take", "#camera"]]) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
find("#clear").addEventListener("click", () => remove(photos));
find("#models select").addEventListener("change", (event) => start(event.target.value));
find("#trouble button").addEventListener("click", () => start(network.name));
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
  else if (!event.target.closest?.("input")) tell(find("#refused"), "The clipboard holds no photo: copy the picture itself, not its address.");
});
let depth = 0; // of elements that the pointer has entered
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // else the browser opens the file in place of this page
    depth = { dragenter: depth + 1, dragover: depth, dragleave: depth - 1, drop: 0 }[type];
    document.body.classList.toggle("dragging", depth > 0);
    if (type !== "drop") return;
    if (event.dataTransfer.files.length) add(event.dataTransfer.files);
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
});document.body.classList.toggle("touch", navigator.maxTouchPoints > 0);
start();
