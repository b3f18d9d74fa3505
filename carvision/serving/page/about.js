/* What the network is, how good it is, and what it can't do. */
import { bytes, count, decimal, el, find, isKnown, listed, named, percent, table, whole } from "./dom.js";
import { examples } from "./examples.js";
import { markdown } from "./markdown.js";

const SPLITS = { test: "test", val: "validation" };
// Of the metrics that a run has, those that say most; fractions are shown in percent
const METRICS = {
  top1: "top-1 %", top3: "top-3 %", top5: "top-5 %", balanced_accuracy: "balanced accuracy %", f1: "F1 %", auc: "AUC",
  mae: "mean error", rmse: "root mean squared error",
};
const JOINT = { "joint/top1": "all heads right %", "joint/consistent": "parent and child consistent %" };

/** Fill in all that depends on the network alone. about: the answer of GET /v1/model. */
export function showAbout(about) {
  const names = listed(Object.entries(about.heads).map(summaryOf));
  find("#title").textContent = document.title = about.title;
  find("#summary").textContent = `${about.backbone}, ${inputOf(about)}. It names ${names}.`;
  find("#verdict").textContent = verdict(about);
  const card = el("div", { class: "card" }, markdown(about.card ?? ""));
  const metrics = Object.keys(SPLITS).flatMap((split) => metricsPart(about, split));
  find("#facts").replaceChildren(factsTable(about), ...metrics, el("h3", {}, "Limits"), limits(about),
    el("details", {}, el("summary", {}, "The model card"), card));
  find("#examples").replaceChildren(...examples(about));
}

const inputOf = ({ input_px: px }) => `${px} \u00d7 ${px} pixels`;

function summaryOf([head, { kind, num_classes: num, unit }]) {
  return kind === "classes" ? `the ${head} (of ${whole(num)})` : `the ${head}${unit ? ` in ${unit}` : ""}`;
}

function headOf([head, { kind, num_classes: num, unit, parent }]) {
  if (kind !== "classes") return `${head}: a number${unit ? ` in ${unit}` : ""}`;
  return `${head}: ${count(num, "class", "classes")}${parent ? `, each of one ${parent}` : ""}`;
}

/** Say in a sentence how often the network is right, as a run's report does. */
function verdict({ heads, metrics }) {
  const split = Object.keys(SPLITS).find((name) => metrics?.[name]);
  const accuracies = Object.keys(heads).reverse() // the finest head first
    .map((head) => [head, metrics?.[split]?.[`${head}/top1`]])
    .filter(([, found]) => isKnown(found?.value));
  if (!accuracies.length) return "";
  const [[head, { value, low, high, num }], ...others] = accuracies;
  const interval = isKnown(low) && isKnown(high) ? ` [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]` : "";
  const photos = `${isKnown(num) ? `${whole(num)} ` : ""}${SPLITS[split]} photos`;
  const first = `It names the right ${head} for ${percent(value)}${interval} of ${photos}`;
  return `${[first, ...others.map(([other, found]) => `the right ${other} for ${percent(found.value)}`)].join(", ")}.`;
}

function factsTable(about) {
  const part = about.crop_to_box ? "the part of a photo inside its box, if one is given" : "the whole photo";
  const facts = {
    network: about.name, backbone: about.backbone, input: `${inputOf(about)}, of ${part}`,
    heads: Object.entries(about.heads).map(headOf).join("; "), decoding: about.decoding, engine: about.engine,
  };
  return el("table", { class: "facts" }, el("tbody", {}, Object.entries(facts).map(([name, value]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, named(value ?? "\u2013"))))));
}

function metricsPart({ metrics }, split) {
  const rows = Object.entries(metrics?.[split] ?? {}).map(rowOf).filter(Boolean);
  if (!rows.length) return [];
  const title = `Metrics on ${SPLITS[split]} photos`, header = ["metric", "value", "95 % interval", "photos"];
  const columns = [0, 1, 2, 3].filter((i) => i < 2 || rows.some((row) => row[i]));
  const shown = (row) => columns.map((i) => row[i]);
  return [el("h3", {}, title), table(title, shown(header), rows.map(shown), (i) => i > 0)];
}

/** Return the row of a metric, e.g. make/top1: its name, value, interval and number of photos; undefined: not shown. */
function rowOf([key, { value, low, high, num }]) {
  const cut = key.lastIndexOf("/"), metric = METRICS[key.slice(cut + 1)];
  const title = JOINT[key] ?? (metric && `${key.slice(0, cut)} ${metric}`);
  if (!title || !isKnown(value)) return undefined;
  const text = (each) => (title.endsWith("%") ? (100 * each).toFixed(1) : decimal(each));
  const interval = isKnown(low) && isKnown(high) ? `${text(low)} \u2013 ${text(high)}` : "";
  return [named(title), text(value), interval, isKnown(num) ? whole(num) : ""];
}

function limits({ limits: { photos, body_bytes: size, pixels, waiting } }) {
  const most = bytes(size), megapixels = Number((pixels / 1e6).toFixed(1));
  return el("ul", {}, [
    "It knows only its classes and always names one of them, also for a photo of something else: " +
      "look at the probability before you trust a name.",
    "The metrics hold for photos of the kind it was tested on, and will be lower on others.",
    `A photo may have ${most} and ${megapixels} million pixels; ` +
      `a program's request ${count(photos, "photo")} and ${most} in all.`,
    `While ${count(waiting, "photo")} are waiting, the server refuses more, and this page asks again.`,
    "Photos are kept neither by the server nor by this page: after a reload they are gone.",
  ].map((text) => el("li", {}, text)));
}
