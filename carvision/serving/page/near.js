/* The nearest training photos of a photo, asked for once someone wants to see them. */
import { asFailure, ask } from "./api.js";
import { el, named } from "./dom.js";
import { network } from "./photo.js";

/** Return the part of the page as a <details>, whose forget() is called when the photo's answer is another. */
export function nearPart(photo) {
  const { available, hint } = network.about.neighbours ?? {};
  const content = el("div", { class: "near-photos" });
  const part = el("details", { class: "near" }, el("summary", {}, "The nearest training photos"), content);
  let isLoaded = false;

  async function load() {
    if (!part.open || isLoaded) return;
    isLoaded = true;
    content.replaceChildren(el("p", { class: "note" }, "Asking the server."));
    try {
      const neighbours = await photo.neighbours();
      content.replaceChildren(el("ul", { class: "photos" }, neighbours.map(itemOf)));
    } catch (error) {
      if (error.name === "AbortError") return;
      isLoaded = false;
      const again = el("button", { type: "button", onclick: load }, "Try again");
      content.replaceChildren(el("p", { class: "wrong" }, asFailure(error).message), again);
    }
  }

  part.forget = () => {
    if (!available) return;
    isLoaded = false;
    content.replaceChildren();
    load();
  };
  if (available) part.addEventListener("toggle", load);
  else {
    content.append(el("p", {}, "They are found by the embeddings of the training photos, which this run has not. ",
      "This makes them: ", el("code", {}, hint ?? "carvision embed RUN")));
  }
  return part;
}

function itemOf({ similarity, classes, photo }) {
  const names = Object.values(classes).map(({ id, name }) => name || id);
  const image = el("img", { alt: `training photo of ${names.join(", ")}`, hidden: true });
  const instead = el("p", { class: "gone note" }, "Loading.");
  // By fetch, which can send the token
  ask(photo, { accept: "image/jpeg" }).then((blob) => {
    image.src = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    [image.hidden, instead.hidden] = [false, true];
  }, () => { instead.textContent = "This photo is gone."; });
  return el("li", {}, el("figure", {}, image, instead, el("figcaption", {},
    names.map((name, i) => [i ? ", " : null, named(name)]),
    el("span", { class: "note" }, `similarity ${similarity.toFixed(2)}`))));
}
