/* The photo, under what is drawn over it: the part that the network saw, a box, a heat map. */
import { el } from "./dom.js";

// As carvision.explanation.overlay draws it: over the grey photo, with a line at half of the maximum
const INFERNO = ["000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4"];
const COLOURS = INFERNO.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const OPACITY = [0.3, 0.75], CONTOUR = 0.5;
const MAP_PX = 384; // of the longer side of a heat map; the browser enlarges it
const MAX_ENLARGED = 6; // times a small photo's own size
const SHORTEST_DRAG_PX = 5; // less is a click

export class Stage {
  /** photo: a Photo. onBox([left, top, right, bottom]): a box was drawn, in whole pixels; null: none can be. */
  constructor(photo, onBox) {
    this.photo = photo;
    this.onBox = onBox;
    this.canDrawByTouch = false;
    this.image = el("img", { alt: photo.name, draggable: "false" });
    this.part = el("div", { class: "part", hidden: true });
    this.box = el("div", { class: "box", hidden: true });
    this.map = el("canvas", { class: "map", hidden: true, role: "img" });
    this.mapImage = el("img", { class: "map", hidden: true, alt: "" });
    this.unshown = el("p", { class: "unshown", hidden: true }, "This browser can't show this file.");
    this.element = el("div", { class: onBox ? "stage drawable" : "stage" },
      this.image, this.part, this.map, this.mapImage, this.box, this.unshown);
    this.image.addEventListener("load", () => this.#setSize(this.image.naturalWidth, this.image.naturalHeight));
    this.image.addEventListener("error", () => this.#cannotShow());
    this.image.src = photo.url;
    if (onBox) this.#listen();
  }

  /** Show what an answer says: the photo's size, and the part of it that was seen, unless that is all of it. */
  showAnswer(answer) {
    if (!this.image.naturalWidth && answer) this.#setSize(answer.width, answer.height);
    if (answer) this.unshown.textContent = "This browser can't show photos of this format; the server can read it.";
    const [left, top, right, bottom] = answer?.part ?? [];
    this.part.hidden = !answer?.part || (left <= 0 && top <= 0 && right >= answer.width && bottom >= answer.height);
    if (!this.part.hidden) this.#place(this.part, answer.part);
    this.showBox(this.photo.box);
  }

  showBox(box) {
    this.box.hidden = !box;
    if (box && this.width) this.#place(this.box, box);
  }

  /** Draw a heat map over its part of the photo; null: none. text: what it shows, for those who can't see it. */
  showMap(map, text = "") {
    this.map.hidden = !map;
    this.mapImage.hidden = true;
    this.unshown.classList.remove("unseen");
    this.element.classList.toggle("mapped", map !== null);
    if (!map) return;
    this.map.setAttribute("aria-label", text);
    this.#place(this.map, map.part);
    paint(this.map, map.values, (map.part[2] - map.part[0]) / (map.part[3] - map.part[1]));
  }

  /** Show a heat map that the server has drawn. */
  showDrawnMap(blob, part, text) {
    this.showMap(null);
    URL.revokeObjectURL(this.mapImage.src);
    this.mapImage.src = URL.createObjectURL(blob);
    this.mapImage.alt = text;
    this.mapImage.hidden = false;
    this.unshown.classList.add("unseen");
    this.#place(this.mapImage, part);
  }

  get canShow() {
    return this.unshown.hidden;
  }

  #cannotShow() {
    this.image.hidden = true;
    this.unshown.hidden = false;
    this.element.dispatchEvent(new Event("unshown"));
  }

  #setSize(width, height) {
    [this.width, this.height] = [width, height];
    const { style } = this.element;
    style.aspectRatio = `${width} / ${height}`;
    style.width = `min(100%, ${MAX_ENLARGED * width}px, calc(64vh * ${(width / height).toFixed(4)}))`;
    this.showBox(this.photo.box);
    this.element.dispatchEvent(new Event("sized"));
  }

  #place(element, [left, top, right, bottom]) {
    const share = (value, whole) => `${(100 * value) / whole}%`;
    Object.assign(element.style, {
      left: share(left, this.width), top: share(top, this.height),
      width: share(right - left, this.width), height: share(bottom - top, this.height),
    });
  }

  #listen() {
    let start = null, drawn = null;
    const at = (event) => {
      const frame = this.element.getBoundingClientRect();
      const share = (value, size) => Math.min(1, Math.max(0, value / size));
      return [
        Math.round(this.width * share(event.clientX - frame.left, frame.width)),
        Math.round(this.height * share(event.clientY - frame.top, frame.height)),
      ];
    };
    const stop = (event) => {
      if (!start || event.pointerId !== start.id) return;
      const isBox = drawn && event.type === "pointerup";
      start = null;
      if (isBox) this.onBox(drawn);
      else this.showBox(this.photo.box);
    };
    this.element.addEventListener("pointerdown", (event) => {
      if (!this.width || event.button || start || (event.pointerType === "touch" && !this.canDrawByTouch)) return;
      event.preventDefault();
      this.element.setPointerCapture(event.pointerId);
      start = { id: event.pointerId, at: at(event), x: event.clientX, y: event.clientY };
      drawn = null;
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!start || event.pointerId !== start.id) return;
      if (Math.min(Math.abs(event.clientX - start.x), Math.abs(event.clientY - start.y)) < SHORTEST_DRAG_PX) return;
      const [x, y] = at(event), [x0, y0] = start.at;
      const box = [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)];
      if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return;
      drawn = box;
      this.showBox(drawn);
    });
    this.element.addEventListener("pointerup", stop);
    this.element.addEventListener("pointercancel", stop);
  }
}

/** Paint values in 0..1, rows of equal parts, between whose centres is interpolated. ratio: width by height. */
function paint(canvas, values, ratio) {
  canvas.width = Math.max(1, Math.round(MAP_PX * Math.min(1, ratio)));
  canvas.height = Math.max(1, Math.round(MAP_PX / Math.max(1, ratio)));
  const { width, height } = canvas;
  const smooth = transposed(enlarged(transposed(enlarged(values, height)), width));
  const draw = canvas.getContext("2d"), picture = draw.createImageData(width, height);
  const isInside = (x, y) => (smooth[y]?.[x] ?? NaN) >= CONTOUR;
  const isEdge = (x, y) => [[-1, 0], [1, 0], [0, -1], [0, 1]].some(([dx, dy]) =>
    smooth[y + dy]?.[x + dx] !== undefined && isInside(x + dx, y + dy) !== isInside(x, y));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = Math.min(1, Math.max(0, smooth[y][x]));
      let colour = colourOf(value), opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * value;
      if (isEdge(x, y)) [colour, opacity] = [isInside(x, y) ? [255, 255, 255] : [0, 0, 0], 1];
      picture.data.set([...colour, 255 * opacity], 4 * (y * width + x));
    }
  }
  draw.putImageData(picture, 0, 0);
}

/** Return the colour of a value in 0..1, [red, green, blue] in 0..255, between two of COLOURS. */
function colourOf(value) {
  const at = value * (COLOURS.length - 1), step = Math.min(COLOURS.length - 2, Math.floor(at));
  return COLOURS[step].map((from, i) => from + (at - step) * (COLOURS[step + 1][i] - from));
}

/** Resize rows to `length` of them by Pillow's bicubic filter. */
function enlarged(rows, length) {
  return Array.from({ length }, (_, i) => {
    const centre = ((i + 0.5) * rows.length) / length;
    const taps = [];
    for (let j = Math.max(0, Math.floor(centre - 2)); j < Math.min(rows.length, Math.ceil(centre + 2)); j++) {
      taps.push([rows[j], bicubic(Math.abs(j + 0.5 - centre))]);
    }
    const sum = taps.reduce((total, [, weight]) => total + weight, 0);
    return rows[0].map((_, k) => taps.reduce((total, [row, weight]) => total + row[k] * weight, 0) / sum);
  });
}

const bicubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);

const transposed = (rows) => rows[0].map((_, k) => rows.map((row) => row[k]));
