/* One photo and its answers: bars, what is sure, what fits together, heat maps, the box, the nearest training photos. */
import { asFailure, ask } from "./api.js";
import { bytes, count, decimal, el, listed, named, percent, tell, threshold } from "./dom.js";
import { network } from "./photo.js";
import { Stage } from "./stage.js";

/** Return whether the first class of a head is sure enough: true, false, or null where nobody knows. */
export function isSure(head, classes) {
  const points = network.about.operating_points;
  if (!Object.keys(points ?? {}).length || !classes.length) return null;
  const point = (points[head] ?? []).find(({ accuracy }) => accuracy === network.accuracy);
  return point ? classes[0].prob >= point.threshold : points[head] ? false : null;
}

export class View {
  constructor(photo, onRemove) {
    this.photo = photo;
    this.shownMap = null; // {head, id, name}
    const { crop_to_box: hasBox } = network.about;
    this.stage = new Stage(photo, hasBox ? (box) => this.#useBox(box) : null);
    this.seen = el("canvas", { class: "seen", role: "img", "aria-label": "what the network saw" });
    this.seenFigure = el("figure", { class: "seen-figure", hidden: true }, this.seen, el("figcaption"));
    this.caption = el("figcaption", { role: "status" });
    this.size = el("span", { class: "note" }, bytes(photo.file.size));
    this.answers = el("div", { class: "answers", tabindex: "-1", role: "region", "aria-label": `answers for ${photo.name}` });
    this.near = this.#neighboursPart();
    const remove = el("button", { type: "button", class: "quiet", onclick: onRemove }, "Remove");
    this.element = el("article", { class: "photo" },
      el("div", { class: "photo-title" }, named(photo.name, "h2"), this.size, remove),
      el("div", { class: "columns" },
        el("div", { class: "shown" }, el("figure", {}, this.stage.element, this.caption), hasBox ? this.#boxButtons() : null),
        this.answers,
        el("div", { class: "extra" }, hasBox ? this.#boxFields() : null, this.seenFigure)),
      this.near);
    this.stage.element.addEventListener("sized", () => this.#showSeen());
    photo.addEventListener("change", () => this.update());
    this.update();
  }

  /** Show what the photo's state is by now. */
  update() {
    const { answer, failure, state, waitS } = this.photo;
    const isBusy = state === "waiting" || state === "sending";
    const hadFocus = this.answers.contains(document.activeElement);
    this.answers.setAttribute("aria-busy", isBusy);
    if (waitS) this.answers.replaceChildren(el("p", { class: "note" }, `The server is busy; trying again in ${count(waitS, "second")}.`));
    else if (isBusy && answer) return; // the earlier answer stays until there is another
    else if (isBusy) this.answers.replaceChildren(el("p", { class: "note busy" }, state === "waiting" ? "Waiting for the photos before it." : "Asking the server."));
    else if (failure) this.answers.replaceChildren(this.#failurePart(failure));
    else this.answers.replaceChildren(...this.#answerParts(answer));
    if (hadFocus && !this.answers.contains(document.activeElement)) this.answers.focus();
    if (isBusy) return;
    if (answer) this.size.textContent = `${answer.width.toLocaleString("en")} \u00d7 ${answer.height.toLocaleString("en")} pixels, ${bytes(this.photo.file.size)}`;
    this.#hideMap();
    this.stage.showAnswer(answer);
    this.#showSeen();
    this.#fillBoxFields();
    this.near.hidden = !answer;
    this.near.forget();
  }

  /** Show where the network looked for a class of a head. */
  async explain(head, { id, name }) {
    if (this.shownMap?.head === head && this.shownMap.id === id) return this.#hideMap();
    const asked = { head, id, name };
    this.shownMap = asked;
    this.#markPressed();
    this.caption.replaceChildren("Looking where the network looked for ", named(name), ".");
    const text = `heat map: where the network looked for ${name}`;
    try {
      const map = await this.photo.explain(head, id);
      const blob = this.stage.canShow ? null : await this.photo.drawn(head, id);
      if (this.shownMap !== asked) return;
      if (blob) this.stage.showDrawnMap(blob, map.part, text);
      else this.stage.showMap(map, text);
      const hide = el("button", { type: "button", class: "quiet", onclick: () => this.#hideMap() }, "Hide the heat map");
      this.caption.replaceChildren("Where the network looked for ", named(name, "strong"), `, ${head}: the brighter, the more it speaks for it; `,
        "the line surrounds what does so at least half as much as the brightest.", map.note ? ` ${map.note}` : "", " ", hide);
    } catch (error) {
      if (this.shownMap !== asked || error.name === "AbortError") return;
      this.#hideMap();
      this.caption.replaceChildren(el("span", { class: "wrong" }, asFailure(error).message));
    }
  }

  #hideMap() {
    this.shownMap = null;
    this.stage.showMap(null);
    this.caption.replaceChildren();
    this.#markPressed();
  }

  #markPressed() {
    for (const bar of this.answers.querySelectorAll("button.bar-row")) {
      bar.setAttribute("aria-pressed", this.shownMap?.head === bar.dataset.head && this.shownMap.id === bar.dataset.id);
    }
  }

  #failurePart({ message, canRetry }) {
    const again = el("button", { type: "button", onclick: () => this.photo.predict() }, "Try again");
    return el("div", { class: "failed", role: "alert" }, el("p", { class: "wrong" }, message), canRetry && again);
  }

  #answerParts(answer) {
    const parts = Object.entries(answer.heads).map(([head, found]) =>
      Array.isArray(found) ? this.#classesPart(head, found) : numberPart(head, found));
    if (answer.consistent !== null && answer.consistent !== undefined) parts.push(fitPart(answer));
    return [...parts, el("p", { class: "note" }, "Choose a class to see where the network looked for it.")];
  }

  #classesPart(head, classes) {
    const sure = isSure(head, classes), point = network.about.operating_points?.[head]?.find(({ accuracy }) => accuracy === network.accuracy);
    const marks = { true: ["right", "\u2713 sure"], false: ["unsure", "not sure"] }[sure];
    const right = percent(network.accuracy, 0);
    const why = sure === null ? null : point
      ? `Sure is ${threshold(point.threshold)} or more: ${percent(point.coverage, 0)} of the validation photos got such an answer, and ${right} of these were right.`
      : `No probability sets answers apart of which ${right} are right.`;
    const rows = classes.map((found, rank) => {
      const fill = el("span", { class: "fill" }), track = el("span", { class: "track", "aria-hidden": "true" }, fill);
      fill.style.width = `${100 * found.prob}%`;
      if (!rank && point) {
        const mark = el("span", { class: "least" });
        mark.style.left = `${100 * point.threshold}%`;
        track.append(mark);
      }
      return el("li", {}, el("button", {
        type: "button", class: "bar-row", "aria-pressed": "false", "data-head": head, "data-id": found.id,
        title: "where the network looked for it", onclick: () => this.explain(head, found),
      }, named(found.name || found.id, "span"), track, el("span", { class: "percent" }, percent(found.prob))));
    });
    return el("section", { class: sure === false ? "head doubtful" : "head" },
      el("h3", {}, named(head), " ", marks ? el("span", { class: `badge ${marks[0]}` }, marks[1]) : null),
      why ? el("p", { class: "note" }, why) : null, el("ol", { class: "bars" }, rows));
  }

  #boxButtons() {
    const touch = el("button", {
      type: "button", class: "touch-only", "aria-pressed": "false",
      onclick: () => {
        this.stage.canDrawByTouch = !this.stage.canDrawByTouch;
        touch.setAttribute("aria-pressed", this.stage.canDrawByTouch);
        this.stage.element.classList.toggle("by-touch", this.stage.canDrawByTouch);
      },
    }, "Draw a box");
    this.whole = el("button", { type: "button", hidden: true, onclick: () => this.#useBox(null) }, "Whole photo");
    const hint = "This network learned from the parts of photos inside a box: draw one around the object.";
    return el("div", { class: "controls" }, el("span", { class: "note" }, hint), touch, this.whole);
  }

  #boxFields() {
    const fields = ["left", "top", "right", "bottom"].map((side) =>
      el("label", {}, side, " ", el("input", { type: "number", step: "1", min: "0", onchange: () => this.#readBoxFields() })));
    this.boxInputs = fields.map((field) => field.querySelector("input"));
    this.boxFault = el("p", { class: "wrong", role: "alert", hidden: true });
    return el("fieldset", { class: "box-fields" }, el("legend", {}, "The box, in pixels"),
      el("div", { class: "controls" }, fields), this.boxFault);
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
    const [left, top, right, bottom] = values.map(Number), { width, height } = this.stage;
    const isInside = left >= 0 && top >= 0 && left < right && top < bottom && (!width || (right <= width && bottom <= height));
    tell(this.boxFault, isInside ? null : `Left must be less than right and top less than bottom, within ${width} \u00d7 ${height} pixels.`);
    if (isInside) this.#useBox([left, top, right, bottom]);
  }

  #useBox(box) {
    this.photo.box = box;
    this.stage.showBox(box);
    this.#fillBoxFields();
    this.photo.predict();
  }

  #showSeen() {
    const { answer } = this.photo, sizePx = network.about.input_px;
    this.seenFigure.hidden = !answer?.part || !this.stage.canShow || !this.stage.image.complete;
    if (this.seenFigure.hidden) return;
    this.stage.drawSeen(this.seen, answer.part, sizePx);
    this.seenFigure.querySelector("figcaption").textContent = `What the network saw: ${sizePx} \u00d7 ${sizePx} pixels`;
  }

  #neighboursPart() {
    const { available, hint } = network.about.neighbours ?? {};
    const content = el("div", { class: "near-photos" });
    let isLoaded = false;
    const load = async () => {
      if (!part.open || isLoaded) return;
      isLoaded = true;
      content.replaceChildren(el("p", { class: "note busy" }, "Asking the server."));
      try {
        content.replaceChildren(neighbourList(await this.photo.neighbours()));
      } catch (error) {
        if (error.name === "AbortError") return;
        isLoaded = false;
        const again = el("button", { type: "button", onclick: load }, "Try again");
        content.replaceChildren(el("p", { class: "wrong" }, asFailure(error).message), again);
      }
    };
    const part = el("details", { class: "near" }, el("summary", {}, "The nearest training photos"), content);
    if (available) part.addEventListener("toggle", load);
    else content.append(el("p", {}, "This run has no embeddings of its training photos, by which they are found. To make them: ", el("code", {}, hint ?? "carvision embed RUN")));
    part.forget = () => {
      if (!available) return;
      isLoaded = false;
      content.replaceChildren();
      load();
    };
    return part;
  }
}

function numberPart(head, { value, unit }) {
  return el("section", { class: "head" }, el("h3", {}, named(head)), el("p", { class: "value" }, `${decimal(value)}\u00a0${unit ?? ""}`.trim()));
}

/** Say whether the classes of parent and child heads fit together, and which do not. */
function fitPart({ heads, consistent }) {
  const pairs = Object.entries(network.about.heads).filter(([head, { parent }]) => parent && heads[head] && heads[parent]);
  const names = listed([...new Set(pairs.flatMap(([head, { parent }]) => [parent, head]))]);
  if (consistent) return el("p", { class: "fit right" }, `\u2713 ${names} fit together.`);
  const why = el("span");
  for (const [head, { parent }] of pairs) explainMisfit(why, head, heads[head][0], parent, heads[parent][0]);
  return el("p", { class: "fit unsure" }, `\u2717 ${names} do not fit together. `, why);
}

async function explainMisfit(out, head, child, parent, found) {
  try {
    const { classes } = await ask(`v1/classes/${encodeURIComponent(head)}`, { query: { search: child.name, limit: 100, model: network.name } });
    const own = classes.find(({ id }) => id === child.id)?.parent;
    if (own && own.id !== found.id) out.append(named(child.name), ` belongs to ${parent} `, named(own.name), ", not to ", named(found.name), ". ");
  } catch { /* that they do not fit is known without it */ }
}

function neighbourList(neighbours) {
  return el("ul", { class: "photos small" }, neighbours.map(({ similarity, classes, photo }) => {
    const names = Object.values(classes).map(({ id, name }) => name || id);
    const image = el("img", { alt: `training photo of ${names.join(", ")}`, loading: "lazy", hidden: true });
    const gone = el("p", { class: "gone note" }, "Loading.");
    ask(photo, { accept: "image/jpeg" }).then((blob) => {
      image.src = URL.createObjectURL(blob);
      [image.hidden, gone.hidden] = [false, true];
    }, () => { gone.textContent = "This photo is gone."; });
    return el("li", {}, el("figure", {}, image, gone,
      el("figcaption", {}, names.map((name, i) => [i ? ", " : null, named(name)]), el("span", { class: "note" }, `similarity ${similarity.toFixed(2)}`))));
  }));
}
