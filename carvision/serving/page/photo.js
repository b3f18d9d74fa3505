/* A photo and what the server says of it: its classes, its heat maps, its neighbours. */
import { asFailure, ask, Failure, sentence } from "./api.js";
import { bytes } from "./dom.js";

const MAX_AT_ONCE = 4; // requests; the server batches what waits
const waiting = [];
let running = 0;

/** The network that is asked: what GET /v1/model says, and what the user chose. */
export const network = { about: null, name: null, accuracy: null };

/** Run a task when fewer than MAX_AT_ONCE are under way. */
async function inTurn(task) {
  if (running >= MAX_AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running++;
  try {
    return await task();
  } finally {
    running--;
    waiting.shift()?.();
  }
}

/** Fires "change" when `state` ("waiting", "sending", "done", "failed"), `answer` or `failure` is another. */
export class Photo extends EventTarget {
  constructor(file) {
    super();
    this.file = file;
    this.name = file.name || "photo";
    this.url = URL.createObjectURL(file);
    this.state = "waiting";
    this.answer = this.failure = this.box = null;
    this.maps = new Map();
  }

  /** Ask for its classes. What is known of another box or network is forgotten. */
  async predict() {
    this.cancel();
    this.control = new AbortController();
    const { signal } = this.control;
    this.maps.clear();
    this.#become("waiting");
    try {
      const found = await inTurn(async () => {
        signal.throwIfAborted();
        this.#become("sending");
        const onWait = (seconds) => this.#become("sending", seconds);
        return ask("v1/predict", { ...await this.#request({ top: 5 }), signal, onWait });
      });
      const [answer] = found.photos;
      if (answer.error) throw new Failure(sentence(answer.error.message), { code: answer.error.code });
      Object.assign(this, { answer, failure: null });
      this.#become("done");
    } catch (error) {
      if (signal.aborted) return;
      Object.assign(this, { answer: null, failure: asFailure(error) });
      this.#become("failed");
    }
  }

  /** Return {rows, columns, values, part, note, ...}: where the network looked for a class. */
  async explain(head, id) {
    const key = JSON.stringify([head, id]);
    if (!this.maps.has(key)) {
      const { signal } = this.control;
      const map = await ask("v1/explain", { ...await this.#request({ head, class: id }), signal });
      this.maps.set(key, map);
    }
    return this.maps.get(key);
  }

  /** Return the heat map drawn over the photo by the server, as a Blob: for photos that the browser can't show. */
  async drawn(head, id) {
    const { signal } = this.control;
    return ask("v1/explain", { ...await this.#request({ head, class: id }), accept: "image/png", signal });
  }

  /** Return the nearest training photos. */
  async neighbours() {
    return (await ask("v1/neighbours", { ...await this.#request({ k: 12 }), signal: this.control.signal })).neighbours;
  }

  /** Give up all requests under way. */
  cancel() {
    this.control?.abort();
  }

  dispose() {
    this.cancel();
    URL.revokeObjectURL(this.url);
  }

  async #request(query) {
    const limit = network.about.limits.body_bytes;
    if (this.file.size > limit) {
      const size = bytes(this.file.size);
      throw new Failure(`The photo has ${size}, and this server takes at most ${bytes(limit)}: make it smaller.`);
    }
    let data;
    try {
      data = await this.file.arrayBuffer(); // else a file that can't be read looks like a server that can't be reached
    } catch {
      throw new Failure("The file can't be read: it was changed, moved or removed, or is a folder. Choose it again.");
    }
    const form = new FormData();
    form.append("photo", new Blob([data], { type: this.file.type || "application/octet-stream" }), "photo");
    if (this.box) form.append("boxes", JSON.stringify([this.box]));
    return { query: { ...query, model: network.name }, form };
  }

  #become(state, waitS = 0) {
    Object.assign(this, { state, waitS });
    this.dispatchEvent(new Event("change"));
  }
}
