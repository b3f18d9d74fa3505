/* One photo: with its box and heat map, beside its answers. */
import { asFailure, sentence } from "./api.js";
import { answerParts } from "./answers.js";
import { bytes, count, el, named, tell } from "./dom.js";
import { nearPart } from "./near.js";
import { network } from "./photo.js";
import { Stage } from "./stage.js";

const TIMES = "\u00d7";
const HOW_TO_READ = ": the brighter, the more it speaks for it; the line surrounds what does so " +
  "at least half as much as the brightest.";

export class View {
  /** photo: a Photo. onRemove(): the user wants it no longer. */
  constructor(photo, onRemove) {
    this.photo = photo;
    this.shownMap = null; // {head, id, name}
    this.shownAnswer = undefined;
    const hasBox = network.about.crop_to_box;
    this.stage = new Stage(photo, hasBox ? (box) => this.#useBox(box) : null);
    this.caption = el("figcaption", { role: "status" });
    this.seen = el("canvas", { class: "seen", role: "img", "aria-label": "what the network saw" });
    this.seenFigure = el("figure", { class: "seen-figure", hidden: true }, this.seen, el("figcaption"));
    this.size = el("span", { class: "note" }, bytes(photo.file.size));
    const label = `answers for ${photo.name}`;
    this.answers = el("div", { class: "answers", tabindex: "-1", role: "region", "aria-label": label });
    this.near = nearPart(photo);
    const remove = el("button", { type: "button", class: "quiet", onclick: onRemove }, "Remove");
    const figure = el("figure", {}, this.stage.element, this.caption);
    this.element = el("article", { class: "photo" },
      el("div", { class: "photo-title" }, named(photo.name, "h2"), this.size, remove),
      el("div", { class: "columns" },
        el("div", { class: "shown" }, figure, hasBox && this.#boxButtons()),
        this.answers,
        el("div", { class: "extra" }, hasBox && this.#boxFields(), this.seenFigure)),
      this.near);
    this.stage.element.addEventListener("sized", () => this.#showSeen());
    this.closing = new AbortController();
    photo.addEventListener("change", () => this.update(), { signal: this.closing.signal });
    this.update();
  }

  /** Follow the photo no longer: another network is asked. */
  close() {
    this.closing.abort();
  }

  /** Show what the photo's state is by now. */
  update() {
    const { answer, failure, state } = this.photo, isBusy = state === "waiting" || state === "sending";
    const hadFocus = this.answers.contains(document.activeElement);
    this.answers.setAttribute("aria-busy", isBusy);
    if (isBusy && answer && !this.photo.waitS) return; // the earlier answer stays until there is another
    if (isBusy) this.answers.replaceChildren(el("p", { class: "note" }, this.#progress()));
    else if (failure) this.answers.replaceChildren(this.#failurePart(failure));
    else this.answers.replaceChildren(...answerParts(answer, (head, found) => this.explain(head, found)));
    if (hadFocus && !this.answers.contains(document.activeElement)) this.answers.focus();
    if (!isBusy && answer !== this.shownAnswer) this.#showAnswer(answer);
    this.#markPressed();
  }

  /** Show where the network looked for a class of a head; hide it if that is shown already. */
  async explain(head, { id, name }) {
    if (this.shownMap?.head === head && this.shownMap.id === id) return this.#hideMap();
    const asked = this.shownMap = { head, id, name };
    this.#markPressed();
    this.caption.replaceChildren("Asking where the network looked for ", named(name), ".");
    const text = `heat map: where the network looked for ${name}`;
    try {
      const map = await this.photo.explain(head, id);
      const blob = this.stage.canShow ? null : await this.photo.drawn(head, id);
      if (this.shownMap !== asked) return;
      if (blob) this.stage.showDrawnMap(blob, map.part, text);
      else this.stage.showMap(map, text);
      const hide = el("button", { type: "button", class: "quiet" }, "Hide the heat map");
      hide.addEventListener("click", () => this.#hideMap());
      this.caption.replaceChildren("Where the network looked for ", named(name, "strong"), `, ${head}`, HOW_TO_READ,
        map.note ? ` ${sentence(map.note)}` : "", " ", hide);
    } catch (error) {
      if (this.shownMap !== asked || error.name === "AbortError") return;
      this.#hideMap();
      this.caption.replaceChildren(el("span", { class: "wrong" }, asFailure(error).message));
    }
  }

  #showAnswer(answer) {
    this.shownAnswer = answer;
    const pixels = answer && [answer.width, answer.height].map((px) => px.toLocaleString("en")).join(` ${TIMES} `);
    if (pixels) this.size.textContent = `${pixels} pixels, ${bytes(this.photo.file.size)}`;
    this.#hideMap();
    this.stage.showAnswer(answer);
    this.#showSeen();
    this.#fillBoxFields();
    this.near.hidden = !answer;
    this.near.forget();
  }

  #hideMap() {
    this.shownMap = null;
    this.stage.showMap(null);
    this.caption.replaceChildren();
    this.#markPressed();
  }

  #markPressed() {
    for (const bar of this.answers.querySelectorAll("button.bar-row")) {
      const isShown = this.shownMap?.head === bar.dataset.head && this.shownMap.id === bar.dataset.id;
      bar.setAttribute("aria-pressed", isShown);
    }
  }

  #progress() {
    const { state, waitS } = this.photo;
    if (waitS) return `The server is busy; trying again in ${count(waitS, "second")}.`;
    return state === "waiting" ? "Waiting for the photos before it." : "Asking the server.";
  }

  #failurePart({ message, canRetry }) {
    const again = el("button", { type: "button", onclick: () => this.photo.predict() }, "Try again");
    return el("div", { class: "failed", role: "alert" }, el("p", { class: "wrong" }, message), canRetry && again);
  }

  /** Draw the part of the photo that the network saw, in the size and shape in which it saw it. */
  #showSeen() {
    const { answer } = this.photo, sizePx = network.about.input_px, { image } = this.stage;
    this.seenFigure.hidden = !answer?.part || !image.complete || !image.naturalWidth;
    if (this.seenFigure.hidden) return;
    const [left, top, right, bottom] = answer.part;
    this.seen.width = this.seen.height = sizePx;
    const draw = this.seen.getContext("2d");
    draw.imageSmoothingQuality = "high";
    draw.drawImage(image, left, top, right - left, bottom - top, 0, 0, sizePx, sizePx);
    const text = `What the network saw: ${sizePx} ${TIMES} ${sizePx} pixels`;
    this.seenFigure.querySelector("figcaption").textContent = text;
  }

  #boxButtons() {
    const touch = el("button", { type: "button", class: "touch-only", "aria-pressed": "false" }, "Draw a box");
    touch.addEventListener("click", () => {
      const canDraw = this.stage.canDrawByTouch = !this.stage.canDrawByTouch;
      touch.setAttribute("aria-pressed", canDraw);
      this.stage.element.classList.toggle("by-touch", canDraw); // else a finger scrolls the page
    });
    this.whole = el("button", { type: "button", hidden: true, onclick: () => this.#useBox(null) }, "Whole photo");
    const hint = "This network learned from the parts of photos inside a box: draw one around the object.";
    return el("div", { class: "controls" }, el("span", { class: "note" }, hint), touch, this.whole);
  }

  #boxFields() {
    this.boxInputs = ["left", "top", "right", "bottom"].map(() =>
      el("input", { type: "number", step: "1", min: "0", onchange: () => this.#readBoxFields() }));
    const labels = ["left", "top", "right", "bottom"].map((side, i) => el("label", {}, side, " ", this.boxInputs[i]));
    this.boxFault = el("p", { class: "wrong", role: "alert", hidden: true });
    const legend = el("legend", {}, "The box, in pixels");
    return el("fieldset", { class: "box-fields" }, legend, el("div", { class: "controls" }, labels), this.boxFault);
  }

  #fillBoxFields() {
    if (!this.boxInputs) return;
    this.boxInputs.forEach((input, i) => { input.value = this.photo.box?.[i] ?? ""; });
    this.whole.hidden = !this.photo.box;
    this.boxFault.hidden = true;
  }

  #readBoxFields() {
    const values = this.boxInputs.map((input) => input.value.trim());
    if (values.some((value) => !value)) return;
    const [left, top, right, bottom] = values.map(Number), { width = Infinity, height = Infinity } = this.stage;
    const isInside = left >= 0 && top >= 0 && left < right && top < bottom && right <= width && bottom <= height;
    const rule = "Left must be less than right and top less than bottom";
    tell(this.boxFault, isInside ? null : `${rule}, within ${width} ${TIMES} ${height} pixels.`);
    if (isInside) this.#useBox([left, top, right, bottom]);
  }

  #useBox(box) {
    this.photo.box = box;
    this.stage.showBox(box);
    this.#fillBoxFields();
    this.photo.predict();
  }
}
