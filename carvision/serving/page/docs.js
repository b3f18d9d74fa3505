/* The description of the API, from /openapi.json: parameters, bodies and answers of each operation; GETs can be tried. */
import { ask, asFailure, urlOf } from "./api.js";
import { el, find, tell } from "./dom.js";

const MAX_SHOWN = 20_000; // characters of an answer
const MAX_DEPTH = 6;

async function start() {
  find("#trouble").hidden = true;
  try {
    const api = await ask("openapi.json");
    find("#title").textContent = document.title = `${api.info.title}: API`;
    find("#summary").textContent = [`Version ${api.info.version}`, api.info.description].filter(Boolean).join(". ");
    const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).filter(([, operation]) => operation.responses).map(([method, operation]) => operationPart(api, path, method, operation)));
    find("#operations").replaceChildren(...operations);
  } catch (error) {
    tell(find("#trouble p"), asFailure(error).message);
    find("#trouble").hidden = false;
  }
}

function operationPart(api, path, method, operation) {
  const parameters = (operation.parameters ?? []).map((each) => resolved(api, each));
  const body = resolved(api, operation.requestBody ?? {});
  return el("details", { class: "operation", open: method === "post" }, el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), " ", el("code", {}, path), operation.summary ? ` ${operation.summary}` : ""),
    (operation.description ?? "").split(/\n{2,}/).filter(Boolean).map((text) => el("p", {}, text)),
    parameters.length ? [el("h3", {}, "Parameters"), parametersTable(api, parameters)] : null,
    body.content ? [el("h3", {}, "Body"), body.description ? el("p", {}, body.description) : null, contentParts(api, body.content)] : null,
    el("h3", {}, "Answers"), answersTable(api, operation.responses),
    method === "get" ? tryPart(path, parameters) : null);
}

function parametersTable(api, parameters) {
  return table(["name", "in", "type", "meaning"], parameters.map(({ name, in: where, schema, description, required }) =>
    [el("code", {}, name), where, typeOf(api, schema) + (required ? "" : ", optional"), description ?? resolved(api, schema ?? {}).description ?? ""]));
}

function answersTable(api, responses) {
  const rows = Object.entries(responses).map(([code, response]) => {
    const { description, content } = resolved(api, response);
    return [code, [el("div", {}, description), content ? contentParts(api, content) : null]];
  });
  return table(["code", "meaning"], rows);
}

function contentParts(api, content) {
  return Object.entries(content).map(([type, { schema, example }]) => {
    const shape = example !== undefined ? JSON.stringify(example, null, 2) : schema && typeOf(api, schema);
    return el("div", {}, el("code", {}, type), shape && shape !== "any" ? el("pre", { tabindex: "0", "aria-label": `shape of ${type}` }, shape) : null);
  });
}

function table(header, rows) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": header.join(", ") }, el("table", {},
    el("thead", {}, el("tr", {}, header.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", { scope: i ? null : "row" }, cell)))))));
}

/** Follow a $ref within the description. */
function resolved(api, each) {
  for (let hops = 0; each?.$ref && hops < MAX_DEPTH; hops++) {
    each = each.$ref.split("/").slice(1).reduce((inner, key) => inner?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], api);
  }
  return each ?? {};
}

/** Return a schema in short: string, [number, ...], or its fields, a line each. */
function typeOf(api, schema, depth = 0) {
  const { type, properties, items, prefixItems, anyOf, oneOf, enum: values, additionalProperties, minimum, maximum, default: usual, format, required = [] } = resolved(api, schema);
  const pad = "  ".repeat(depth + 1);
  if (depth > MAX_DEPTH) return "...";
  if (anyOf ?? oneOf) return [...new Set((anyOf ?? oneOf).map((each) => typeOf(api, each, depth)))].join(" | ");
  if (values) return values.map((value) => JSON.stringify(value)).join(" | ");
  if (properties) {
    const lines = Object.entries(properties).map(([name, each]) => `${pad}${JSON.stringify(name)}${required.includes(name) ? "" : "?"}: ${typeOf(api, each, depth + 1)}`);
    return `{\n${lines.join(",\n")}\n${"  ".repeat(depth)}}`;
  }
  if (type === "array") return prefixItems ? `[${prefixItems.map((each) => typeOf(api, each, depth + 1)).join(", ")}]` : `[${typeOf(api, items ?? {}, depth)}, ...]`;
  if (type === "object" && additionalProperties && additionalProperties !== true) return `{name: ${typeOf(api, additionalProperties, depth)}, ...}`;
  const range = minimum !== undefined || maximum !== undefined ? ` ${minimum ?? ""}..${maximum ?? ""}` : "";
  return `${format === "binary" ? "file" : type ?? "any"}${range}${usual !== undefined && usual !== null ? ` (${usual})` : ""}`;
}

/** Return a form that sends a GET and shows its answer. */
function tryPart(path, parameters) {
  const fields = parameters.filter((each) => ["path", "query"].includes(each.in)).map(({ name, in: where, schema, required }) =>
    el("label", {}, name, " ", el("input", { name, "data-in": where, required: Boolean(required), value: where === "query" ? schema?.default : null, autocomplete: "off" })));
  const out = el("div", { role: "status" });
  const send = async (event) => {
    event.preventDefault();
    const inputs = [...event.target.querySelectorAll("input")], query = {};
    let filled = path;
    for (const { name, value, dataset } of inputs) {
      if (dataset.in === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
      else query[name] = value;
    }
    out.replaceChildren(el("p", { class: "note" }, "Asking the server."));
    try {
      const blob = await ask(filled, { query, accept: "*/*" });
      out.replaceChildren(el("p", { class: "note" }, el("code", {}, urlOf(filled, query).href)), await shown(blob));
    } catch (error) {
      const { status, message } = asFailure(error);
      out.replaceChildren(el("p", { class: "wrong" }, `${status ? `${status}: ` : ""}${message}`));
    }
  };
  return el("form", { onsubmit: send }, el("h3", {}, "Try it"), el("div", { class: "controls" }, fields, el("button", {}, "Send")), out);
}

async function shown(blob) {
  if (blob.type.startsWith("image/")) return el("img", { src: URL.createObjectURL(blob), alt: "the answer" });
  let text = await blob.text();
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch { /* shown as it is */ }
  return el("pre", { tabindex: "0", "aria-label": "the answer" }, text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n... ${(text.length - MAX_SHOWN).toLocaleString("en")} more characters` : text);
}

find("#trouble button").addEventListener("click", start);
start();
