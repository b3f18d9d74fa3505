/* What the server says of a photo: bars for each head, what is sure, whether parent and child classes fit together. */
import { ask } from "./api.js";
import { decimal, el, listed, named, percent, threshold } from "./dom.js";
import { network } from "./photo.js";

/** Return the point of a head from which on answers are as often right as the user wants; undefined: none is known. */
const pointOf = (head) =>
  network.about.operating_points?.[head]?.find(({ accuracy }) => accuracy === network.accuracy);

/** Return whether the first class of a head is sure enough: true, false, or null where nobody knows. */
export function isSure(head, classes) {
  if (!network.about.operating_points?.[head] || !classes.length) return null;
  const point = pointOf(head);
  return point ? classes[0].prob >= point.threshold : false;
}

/** Return the elements of an answer. explain(head, {id, name}) is called with the class that was chosen. */
export function answerParts({ heads, consistent }, explain) {
  const parts = Object.entries(heads).map(([head, found]) =>
    Array.isArray(found) ? classesPart(head, found, explain) : numberPart(head, found));
  if (consistent !== null && consistent !== undefined) parts.push(fitPart(heads, consistent));
  const hint = el("p", { class: "note" }, "Choose a class to see where the network looked for it.");
  return [...parts, parts.some((part) => part.querySelector("button")) && hint].filter(Boolean);
}

function classesPart(head, classes, explain) {
  const sure = isSure(head, classes);
  const badge = sure === null ? null
    : el("span", { class: sure ? "badge right" : "badge unsure" }, sure ? "\u2713 sure" : "not sure");
  return el("section", { class: sure === false ? "head doubtful" : "head" },
    el("h3", {}, named(head), " ", badge),
    sure === null ? null : el("p", { class: "note" }, meaningOfSure(head)),
    el("ol", { class: "bars" }, classes.map((found, rank) => barOf(head, found, rank, explain))));
}

function meaningOfSure(head) {
  const point = pointOf(head), right = percent(network.accuracy, 0);
  if (!point) return `No probability sets answers apart of which ${right} are right.`;
  const { coverage } = point, share = Number.isFinite(coverage) ? percent(coverage, 0) : "some";
  return `Sure is ${threshold(point.threshold)} or more: ${share} of the validation photos got such an answer, ` +
    `and ${right} of these were right.`;
}

function barOf(head, { id, name, prob }, rank, explain) {
  const label = name || id, point = pointOf(head);
  const fill = el("span", { class: "fill" }), track = el("span", { class: "track", "aria-hidden": "true" }, fill);
  fill.style.width = `${100 * prob}%`;
  if (!rank && point) {
    const mark = el("span", { class: "least" });
    mark.style.left = `${100 * point.threshold}%`;
    track.append(mark);
  }
  const attributes = {
    type: "button", class: "bar-row", "aria-pressed": "false", "data-head": head, "data-id": id,
    title: "where the network looked for it", onclick: () => explain(head, { id, name: label }),
  };
  return el("li", {},
    el("button", attributes, named(label, "span"), track, el("span", { class: "percent" }, percent(prob))));
}

function numberPart(head, { value, unit }) {
  const text = `${decimal(value)}\u00a0${unit ?? ""}`.trim();
  return el("section", { class: "head" }, el("h3", {}, named(head)), el("p", { class: "value" }, text));
}

/** Say whether the classes of parent and child heads fit together, and which do not. */
function fitPart(heads, consistent) {
  const pairs = Object.entries(network.about.heads)
    .filter(([head, { parent }]) => parent && heads[head] && heads[parent])
    .map(([head, { parent }]) => [parent, head]);
  const names = listed([...new Set(pairs.flat())]);
  if (consistent) return el("p", { class: "fit right" }, `\u2713 ${names} fit together.`);
  const why = el("span");
  for (const [parent, head] of pairs) explainMisfit(why, head, heads[head][0], parent, heads[parent][0]);
  return el("p", { class: "fit unsure" }, `\u2717 ${names} do not fit together. `, why);
}

async function explainMisfit(out, head, child, parent, found) {
  try {
    const query = { search: child.name, limit: 100, model: network.name };
    const { classes } = await ask(`v1/classes/${encodeURIComponent(head)}`, { query });
    const own = classes.find(({ id }) => id === child.id)?.parent;
    if (!own || own.id === found.id) return;
    out.append(named(child.name), ` belongs to ${parent} `, named(own.name), ", not to ", named(found.name), ". ");
  } catch { /* that they do not fit is known without it */ }
}
