/* Programs that ask the server, with its address, this network and its first head filled in. */
import { needsToken, urlOf } from "./api.js";
import { el } from "./dom.js";

/** Return the elements of all examples. about: the answer of GET /v1/model. */
export function examples({ models, name, heads }) {
  const url = urlOf("v1/predict", { top: 5, model: models.length > 1 ? name : null }).href;
  const head = Object.keys(heads).find((each) => heads[each].kind === "classes");
  const texts = { curl: curl(url), Python: python(url, head), JavaScript: javascript(url, head) };
  return Object.entries(texts).flatMap(([title, text]) => {
    const code = el("pre", { tabindex: "0", "aria-label": `example in ${title}` }, text);
    const copy = el("button", { type: "button", class: "quiet" }, "Copy");
    copy.addEventListener("click", async () => { copy.textContent = await copied(code); });
    return [el("div", { class: "example-title" }, el("h3", {}, title), copy), code];
  });
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return "Copied";
  } catch { // a page of another machine, without TLS, may not
    getSelection().selectAllChildren(code);
    return "Selected: press Ctrl+C";
  }
}

function curl(url) {
  const token = needsToken() ? "-H 'Authorization: Bearer TOKEN' " : "";
  return `curl ${token}-F photo=@photo.jpg '${url.replaceAll("'", "%27")}'`;
}

function python(url, head) {
  const token = needsToken() ? ", \"Authorization\": \"Bearer TOKEN\"" : "";
  return `import json
import urllib.request

with open("photo.jpg", "rb") as file:
    photo = file.read()
headers = {"Content-Type": "image/jpeg"${token}}
request = urllib.request.Request(${JSON.stringify(url)}, photo, headers)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
print(answer["photos"][0]["heads"]${head ? `[${JSON.stringify(head)}][0]` : ""})`;
}

function javascript(url, head) {
  const token = needsToken() ? ", headers: { Authorization: \"Bearer TOKEN\" }" : "";
  return `import { readFile } from "node:fs/promises";

const body = new FormData();
body.append("photo", new Blob([await readFile("photo.jpg")]));
const url = ${JSON.stringify(url)};
const response = await fetch(url, { method: "POST", body${token} });
const answer = await response.json();
console.log(answer.photos[0].heads${head ? `[${JSON.stringify(head)}][0]` : ""});`;
}
