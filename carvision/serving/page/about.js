/* What the network is, how good it is, what it can't do, and examples of how programs ask it. */
import { needsToken, urlOf } from "./api.js";
import { bytes, count, decimal, el, find, listed, named, percent } from "./dom.js";
import { markdown } from "./markdown.js";

const SPLITS = { test: "test", val: "validation" };
// Of the metrics that a run has, those that say most; fractions are shown in percent
const METRICS = {
  top1: "top-1 %", top3: "top-3 %", top5: "top-5 %", balanced_accuracy: "balanced accuracy %", f1: "F1 %", auc: "AUC",
  mae: "mean error", rmse: "root mean squared error",
};
const JOINT = { "joint/top1": "all heads right", "joint/consistent": "parent and child consistent" };

export function showAbout(about) {
  const heads = Object.entries(about.heads);
  find("#title").textContent = document.title = about.title;
  find("#summary").textContent = `${about.backbone}, ${about.input_px} \u00d7 ${about.input_px} pixels. It names ${listed(heads.map(summaryOf))}.`;
  find("#verdict").textContent = verdict(about);
  find("#facts").replaceChildren(factsTable(about), ...Object.entries(SPLITS).map(([split, name]) => metricsTable(about, split, name)).flat(),
    ...limits(about), el("details", {}, el("summary", {}, "The model card"), el("div", { class: "card" }, markdown(about.card ?? ""))));
  find("#examples").replaceChildren(...examples(about));
}

const summaryOf = ([head, { kind, num_classes, unit }]) =>
  kind === "classes" ? `the ${head} (of ${num_classes.toLocaleString("en")})` : `the ${head}${unit ? ` in ${unit}` : ""}`;

/** Say in a sentence how often the network is right, as a run's report does. */
function verdict({ heads, metrics }) {
  const split = Object.keys(SPLITS).find((name) => metrics?.[name]);
  const of = Object.keys(heads).reverse().map((head) => [head, metrics?.[split]?.[`${head}/top1`]]).filter(([, found]) => found);
  if (!of.length) return "";
  const [[head, { value, low, high, num }], ...others] = of;
  const interval = known(low) && known(high) ? ` [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]` : "";
  const what = `${known(num) ? `${num.toLocaleString("en")} ` : ""}${SPLITS[split]} photos`;
  return [`It names the right ${head} for ${percent(value)}${interval} of ${what}`, ...others.map(([other, found]) => `the right ${other} for ${percent(found.value)}`)].join(", ") + ".";
}

const known = (value) => value !== null && value !== undefined;

function factsTable(about) {
  const crop = about.crop_to_box ? "the part of a photo inside its box, if one is given" : "the whole photo";
  const rows = [
    ["network", about.name], ["backbone", about.backbone], ["input", `${about.input_px} \u00d7 ${about.input_px} pixels, of ${crop}`],
    ["heads", listed(Object.entries(about.heads).map(([head, { kind, num_classes, unit, parent }]) =>
      kind === "classes" ? `${head}: ${count(num_classes, "class", "classes")}${parent ? `, each of one ${parent}` : ""}` : `${head}: a number${unit ? ` in ${unit}` : ""}`))],
    ["decoding", about.decoding], ["engine", about.engine],
  ];
  return el("table", { class: "facts" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, named(String(value ?? "\u2013")))))));
}

function metricsTable({ metrics }, split, name) {
  const rows = Object.entries(metrics?.[split] ?? {}).map(([key, found]) => {
    const cut = key.lastIndexOf("/"), metric = key.slice(cut + 1), title = JOINT[key] ?? (METRICS[metric] && `${key.slice(0, cut)} ${METRICS[metric]}`);
    const isShare = key in JOINT || METRICS[metric]?.endsWith("%");
    const text = (value) => (!known(value) ? "\u2013" : isShare ? (100 * value).toFixed(1) : decimal(value));
    return title && [title + (key in JOINT ? " %" : ""), text(found.value), known(found.low) && known(found.high) ? `${text(found.low)} \u2013 ${text(found.high)}` : "", known(found.num) ? found.num.toLocaleString("en") : ""];
  }).filter(Boolean);
  if (!rows.length) return [];
  const columns = ["metric", "value", "95 % interval", "photos"].filter((_, i) => i < 2 || rows.some((row) => row[i]));
  const cell = (text, i) => (i ? el("td", { class: "number" }, text) : el("th", { scope: "row" }, named(text)));
  return [el("h3", {}, `Metrics on ${name} photos`), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `metrics on ${name} photos` }, el("table", {},
    el("thead", {}, el("tr", {}, columns.map((title, i) => el("th", { scope: "col", class: i ? "number" : null }, title)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.slice(0, columns.length).map(cell))))))];
}

function limits(about) {
  const { photos, body_bytes, pixels, waiting } = about.limits;
  return [el("h3", {}, "Limits"), el("ul", {},
    el("li", {}, "It knows only its classes and always names one of them, also for a photo of something else: look at the probability before you trust a name."),
    el("li", {}, "The metrics hold for photos of the kind it was tested on, and will be lower on others."),
    el("li", {}, `A photo may have ${bytes(body_bytes)} and ${Number((pixels / 1e6).toFixed(1))} million pixels. A request of a program may have ${count(photos, "photo")} and ${bytes(body_bytes)} in all.`),
    el("li", {}, `While ${count(waiting, "photo")} are waiting, the server refuses more, and this page asks again.`),
    el("li", {}, "Photos are kept neither by the server nor by this page: after a reload they are gone."))];
}

function examples({ models, name, heads }) {
  const query = { top: 5, ...(models.length > 1 ? { model: name } : {}) };
  const url = urlOf("v1/predict", query).href, token = needsToken();
  const [head] = Object.keys(heads).filter((each) => heads[each].kind === "classes");
  const pick = (of) => (head ? `${of}["heads"][${JSON.stringify(head)}][0]` : `${of}["heads"]`);
  const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const texts = {
    curl: [`curl${token ? " -H 'Authorization: Bearer TOKEN'" : ""} -F photo=@photo.jpg ${shell(url)}`],
    Python: [
      "import json", "import urllib.request", "",
      "with open(\"photo.jpg\", \"rb\") as file:", "    photo = file.read()",
      `headers = {"Content-Type": "image/jpeg"${token ? ", \"Authorization\": \"Bearer TOKEN\"" : ""}}`,
      `request = urllib.request.Request(${JSON.stringify(url)}, photo, headers)`,
      "with urllib.request.urlopen(request) as response:", "    answer = json.load(response)",
      `print(${pick("answer[\"photos\"][0]")})`,
    ],
    JavaScript: [
      "import { readFile } from \"node:fs/promises\";", "",
      "const body = new FormData();", "body.append(\"photo\", new Blob([await readFile(\"photo.jpg\")]));",
      `const response = await fetch(${JSON.stringify(url)}, { method: "POST", body${token ? ", headers: { Authorization: \"Bearer TOKEN\" }" : ""} });`,
      "const answer = await response.json();",
      `console.log(${pick("answer.photos[0]").replaceAll(/\["(\w+)"\]/g, ".$1")});`,
    ],
  };
  return Object.entries(texts).flatMap(([title, lines]) => {
    const code = el("pre", { tabindex: "0", "aria-label": `example in ${title}` }, lines.join("\n"));
    const copy = el("button", { type: "button", class: "quiet", onclick: async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch { // pages without TLS may not
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected: press Ctrl+C";
      }
    } }, "Copy");
    return [el("div", { class: "example-title" }, el("h3", {}, title), copy), code];
  });
}
