/* The description of the API, from openapi.json: each operation's parameters, bodies and answers; forms for GETs. */
import { asFailure, ask, urlOf } from "./api.js";
import { el, find, table, tell, whole } from "./dom.js";

const MAX_SHOWN = 20_000; // characters of an answer
const MAX_DEPTH = 6; // of a schema, and of references
let api = null;

async function start() {
  find("#trouble").hidden = true;
  try {
    api = await ask("openapi.json");
  } catch (error) {
    tell(find("#trouble p"), asFailure(error).message);
    find("#trouble").hidden = false;
    return;
  }
  const { title, version, description } = api.info;
  find("#title").textContent = document.title = `${title}: API`;
  find("#summary").textContent = [`Version ${version}`, description].filter(Boolean).join(". ");
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.keys(methods).filter((method) => methods[method].responses).map((method) =>
      operationPart(path, method, methods[method])));
  if (operations.length) operations[0].open = true;
  find("#operations").replaceChildren(...operations, ...errorsPart());
}

function operationPart(path, method, { summary, description, parameters = [], requestBody, responses }) {
  const given = parameters.map(resolved), body = resolved(requestBody), name = method.toUpperCase();
  return el("details", { class: "operation" },
    el("summary", {}, el("span", { class: `method ${method}` }, name), " ", el("code", {}, path), " ", summary),
    (description ?? "").split(/\n{2,}/).filter(Boolean).map((text) => el("p", {}, text)),
    given.length > 0 && [el("h3", {}, "Parameters"), parametersTable(given)],
    body.content && [el("h3", {}, "Body"), el("p", {}, body.description ?? ""), contentParts(body.content)],
    el("h3", {}, "Answers"), answersTable(responses),
    method === "get" && tryPart(path, given));
}

function parametersTable(parameters) {
  return table("parameters", ["name", "in", "type", "meaning"],
    parameters.map(({ name, in: where, schema, description, required }) =>
      [el("code", {}, name), where, typeOf(schema) + (required ? "" : ", optional"), description ?? ""]));
}

function answersTable(responses) {
  return table("answers", ["code", "meaning"], Object.entries(responses).map(([code, response]) => {
    const { description, content } = resolved(response);
    return [code, [el("div", {}, description), isError(code) || !content ? null : contentParts(content)]];
  }));
}

const isError = (code) => /^[45]/.test(code);

/** Show the shape of errors, which all have, once. */
function errorsPart() {
  const operations = Object.values(api.paths).flatMap((methods) => Object.values(methods));
  const responses = operations.flatMap((each) => Object.entries(each.responses ?? {}));
  const [, first] = responses.find(([code, response]) => isError(code) && resolved(response).content) ?? [];
  return first ? [el("h2", {}, "Errors"), contentParts(resolved(first).content)].flat() : [];
}

function contentParts(content) {
  return Object.entries(content).map(([type, { schema, example }]) => {
    const shape = example === undefined ? typeOf(schema) : JSON.stringify(example, null, 2);
    const code = shape === "any" ? null : el("pre", { tabindex: "0", "aria-label": `shape of ${type}` }, shape);
    return el("div", {}, el("code", {}, type), code);
  });
}

/** Follow a $ref within the description. */
function resolved(each) {
  const unescaped = (key) => key.replaceAll("~1", "/").replaceAll("~0", "~");
  for (let hops = 0; each?.$ref && hops < MAX_DEPTH; hops++) {
    each = each.$ref.split("/").slice(1).reduce((inner, key) => inner?.[unescaped(key)], api);
  }
  return each ?? {};
}

/** Return a schema in short: string, [number, ...], or its fields, a line each. */
function typeOf(schema, depth = 0) {
  const { type, properties, items, prefixItems, anyOf, oneOf, enum: values, additionalProperties: others, ...rest } =
    resolved(schema);
  const inner = (each) => typeOf(each, depth + 1);
  if (depth > MAX_DEPTH) return "...";
  if (Array.isArray(type)) return type.map((each) => typeOf({ ...resolved(schema), type: each }, depth)).join(" | ");
  if (anyOf ?? oneOf) return [...new Set((anyOf ?? oneOf).map((each) => typeOf(each, depth)))].join(" | ");
  if (values) return values.map((value) => JSON.stringify(value)).join(" | ");
  if (properties) return fieldsOf(properties, rest.required ?? [], depth);
  if (prefixItems) return `[${prefixItems.map(inner).join(", ")}]`;
  if (type === "array") return `[${typeOf(items, depth)}, ...]`;
  if (typeof others === "object") return `{name: ${typeOf(others, depth)}, ...}`;
  return scalarOf(type, rest);
}

function fieldsOf(properties, required, depth) {
  const pad = "  ".repeat(depth);
  const lines = Object.entries(properties).map(([name, each]) =>
    `${pad}  ${JSON.stringify(name)}${required.includes(name) ? "" : "?"}: ${typeOf(each, depth + 1)}`);
  return `{\n${lines.join(",\n")}\n${pad}}`;
}

function scalarOf(type, { minimum, maximum, default: usual, format }) {
  const range = minimum === undefined && maximum === undefined ? "" : ` ${minimum ?? ""}..${maximum ?? ""}`;
  const otherwise = usual === undefined || usual === null || usual === "" ? "" : ` (${usual})`;
  return `${format === "binary" ? "file" : type ?? "any"}${range}${otherwise}`;
}

/** Return a form that sends a GET and shows its answer. */
function tryPart(path, parameters) {
  const fields = parameters.filter((each) => ["path", "query"].includes(each.in)).map((each) => {
    const value = each.in === "query" ? each.schema?.default : null;
    const input = el("input", { name: each.name, required: Boolean(each.required), value, autocomplete: "off" });
    return { input, isPath: each.in === "path", label: el("label", {}, each.name, " ", input) };
  });
  const out = el("div", { role: "status" });

  async function send(event) {
    event.preventDefault();
    const query = {};
    let filled = path;
    for (const { input, isPath } of fields) {
      if (isPath) filled = filled.replace(`{${input.name}}`, encodeURIComponent(input.value));
      else query[input.name] = input.value;
    }
    out.replaceChildren(el("p", { class: "note" }, "Asking the server."));
    try {
      const answer = await shown(await ask(filled, { query, accept: "*/*" }));
      out.replaceChildren(el("p", { class: "note" }, el("code", {}, urlOf(filled, query).href)), answer);
    } catch (error) {
      const { status, message } = asFailure(error);
      out.replaceChildren(el("p", { class: "wrong" }, `${status ? `${status}: ` : ""}${message}`));
    }
  }

  const controls = el("div", { class: "controls" }, fields.map(({ label }) => label), el("button", {}, "Send"));
  return el("form", { onsubmit: send }, el("h3", {}, "Try it"), controls, out);
}

async function shown(blob) {
  if (blob.type.startsWith("image/")) return el("img", { src: URL.createObjectURL(blob), alt: "the answer" });
  let text = await blob.text();
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch { /* shown as it is */ }
  const more = text.length > MAX_SHOWN ? `\n... ${whole(text.length - MAX_SHOWN)} more characters` : "";
  return el("pre", { tabindex: "0", "aria-label": "the answer" }, text.slice(0, MAX_SHOWN) + more);
}

find("#trouble button").addEventListener("click", start);
start();
