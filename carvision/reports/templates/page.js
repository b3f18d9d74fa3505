"use strict"; // The parts of all pages that can be used: each is left alone where a page has none
// Tables: sort by a column, filter by text
const collator = new Intl.Collator(undefined, { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = header.classList.contains("number");
    const value = (row) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      return numeric ? parseFloat(text.replaceAll(",", "")) : text;
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // unknown values last, either way
      const order = numeric ? x - y : collator.compare(x, y);
      return down ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
for (const controls of document.querySelectorAll(".controls:has(.filter)")) {
  const filter = controls.querySelector(".filter"), only = controls.querySelector(".only-wrong");
  const rows = [...document.getElementById(filter.getAttribute("aria-controls")).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.replace(/\s+/g, " ").toLowerCase()); // also of spaces that hold a line
  const show = () => {
    const wanted = filter.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !texts[i].includes(wanted) || (only?.checked && row.dataset.wrong === "0");
      shown += !row.hidden;
    });
    controls.querySelector("[role=status]").textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
  };
  filter.addEventListener("input", show);
  only?.addEventListener("change", show);
}

// Confusion matrices
for (const part of document.querySelectorAll(".confusion")) {
  const data = JSON.parse(document.getElementById(part.dataset.source).textContent);
  const canvas = part.querySelector("canvas"), text = part.querySelector(".cell"), draw = canvas.getContext("2d");
  const order = part.querySelector(".order"), only = part.querySelector(".only-wrong");
  const totals = new Map(), wrong = new Set(), counts = new Map();
  for (const [t, p, n] of data.cells) {
    totals.set(t, (totals.get(t) ?? 0) + n);
    counts.set(`${t},${p}`, n);
    if (t !== p) wrong.add(t).add(p);
  }
  const cells = data.cells.toSorted(([t, p], [u, q]) => (t !== p) - (u !== q)); // mistakes over right answers
  const DOT = 3, NEAR = 6; // pixels: the least that can be seen, and pointed at
  let shown = [], places = new Map(), px = 1, margin = 0, at = null;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const shorten = (name, room) => { // to so many pixels, by whole characters
    const letters = [...name];
    let shown = name;
    while (letters.length > 1 && draw.measureText(shown).width > room) {
      letters.pop();
      shown = `${letters.join("").trimEnd()}\u2026`;
    }
    return shown;
  };
  const render = () => {
    shown = data.orders[order.value].filter((code) => !only.checked || wrong.has(code));
    places = new Map(shown.map((code, i) => [code, i]));
    const room = part.clientWidth, named = shown.length <= 60 && room * 0.7 / shown.length > 9;
    margin = named ? Math.min(150, room * 0.3) : 4;
    px = Math.max(1, Math.min(34, (Math.min(room, 900) - margin - 4) / Math.max(1, shown.length)));
    if (shown.length > 60) px = Math.max(1, Math.floor(px * devicePixelRatio) / devicePixelRatio);
    const side = margin + px * shown.length + 2, ratio = devicePixelRatio;
    canvas.width = canvas.height = Math.ceil(side * ratio);
    canvas.style.width = canvas.style.height = `${side}px`;
    draw.scale(ratio, ratio);
    draw.fillStyle = style("--raised");
    draw.fillRect(margin, margin, px * shown.length, px * shown.length);
    for (const [t, p, n] of cells) {
      if (!places.has(t) || !places.has(p)) continue;
      const share = n / totals.get(t), size = t !== p && px < DOT ? DOT : Math.max(1, px - (px > 5));
      const shift = Math.min(0, (px - size) / 2);
      const x = margin + px * places.get(p) + shift, y = margin + px * places.get(t) + shift;
      draw.globalAlpha = px < DOT ? 0.5 + 0.5 * share : 0.18 + 0.82 * share; // a single photo of many must be seen, too
      draw.fillStyle = style(t === p ? "--look-0" : "--look-1");
      draw.fillRect(x, y, size, size);
      draw.globalAlpha = 1;
      if (px >= 20 && n) {
        draw.fillStyle = share > 0.45 ? style("--back") : style("--text");
        draw.font = "11px system-ui, sans-serif"; draw.textAlign = "center"; draw.textBaseline = "middle";
        draw.fillText(n, x + px / 2, y + px / 2);
      }
    }
    if (named) {
      draw.fillStyle = style("--text"); draw.font = `${Math.min(12, px)}px system-ui, sans-serif`;
      draw.textBaseline = "middle";
      shown.forEach((code, i) => {
        const name = shorten(data.names[code], margin - 8);
        draw.textAlign = "right";
        draw.fillText(name, margin - 4, margin + px * (i + 0.5));
        draw.save();
        draw.translate(margin + px * (i + 0.5), margin - 4);
        draw.rotate(-Math.PI / 2);
        draw.textAlign = "left";
        draw.fillText(name, 0, 0);
        draw.restore();
      });
    }
    if (at && at[0] < shown.length && at[1] < shown.length) mark();
  };
  const mark = () => {
    draw.strokeStyle = style("--text"); draw.lineWidth = 2;
    draw.strokeRect(margin + px * at[1] - 1, margin + px * at[0] - 1, Math.max(px, 3) + 1, Math.max(px, 3) + 1);
  };
  const tell = (row, column) => {
    if (row < 0 || column < 0 || row >= shown.length || column >= shown.length) return;
    if (at && at[0] === row && at[1] === column) return;
    at = [row, column];
    render();
    const t = shown[row], p = shown[column], n = counts.get(`${t},${p}`) ?? 0, all = totals.get(t) ?? 0;
    const what = t === p ? `${data.names[t]}: ${n} of ${all} photos are right`
      : `${data.names[t]}, taken for ${data.names[p]}: ${n} of ${all} photos`;
    const paths = data.paths[`${t},${p}`] ?? [];
    const more = n > paths.length && t !== p && paths.length ? `, and ${n - paths.length} more` : "";
    text.textContent = paths.length ? `${what}. ${paths.join(", ")}${more}` : `${what}.`;
  };
  const cellOf = (event) => {
    const box = canvas.getBoundingClientRect();
    const [y, x] = [event.clientY - box.top, event.clientX - box.left].map((v) => (v - margin) / px);
    let nearest = [Math.floor(y), Math.floor(x)], least = NEAR / px;
    for (const [t, p] of px < NEAR ? cells : []) { // of small cells, the nearest that is not empty
      const distance = Math.hypot(places.get(t) + 0.5 - y, places.get(p) + 0.5 - x);
      if (distance < least) [nearest, least] = [[places.get(t), places.get(p)], distance];
    }
    return nearest;
  };
  canvas.addEventListener("pointermove", (event) => tell(...cellOf(event)));
  canvas.addEventListener("pointerdown", (event) => tell(...cellOf(event)));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = at ?? [0, -1];
    tell(row + step[0], column + step[1]);
  });
  for (const control of [order, only]) control.addEventListener("change", () => { at = null; render(); });
  new ResizeObserver(() => render()).observe(part);
  for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", render);
}

// Charts: the values of a point, by pointing at it, touching it, or with the arrow keys
for (const chart of document.querySelectorAll(".chart")) {
  const text = document.createElement("p");
  text.className = "point note";
  text.setAttribute("role", "status");
  chart.append(text);
  for (const drawing of chart.querySelectorAll("svg[role=img]")) {
    const points = [...drawing.querySelectorAll("g > title")].map((title) => title.parentElement);
    if (!points.length) continue;
    let at = -1;
    drawing.setAttribute("role", "application");
    drawing.setAttribute("aria-label", `${drawing.getAttribute("aria-label")}; arrow keys move between the points, which are read below`);
    drawing.tabIndex = 0;
    const show = (i) => {
      points[at]?.classList.remove("at");
      at = i;
      points[at].classList.add("at");
      text.textContent = points[at].querySelector("title").textContent;
    };
    const nearest = (event) => { // within a finger's breadth
      const distances = points.map((point) => {
        const box = point.getBoundingClientRect();
        return Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
      });
      const least = Math.min(...distances);
      if (least < 24) show(distances.indexOf(least));
    };
    drawing.addEventListener("pointermove", nearest);
    drawing.addEventListener("pointerdown", nearest);
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show((at + step + points.length) % points.length);
    });
    drawing.addEventListener("focus", () => { if (at < 0 && drawing.matches(":focus-visible")) show(0); });
  }
}

// Sliders: answer only if the probability is high enough
for (const part of document.querySelectorAll(".slider")) {
  const { steps, photos } = JSON.parse(document.getElementById(part.dataset.source).textContent);
  const range = part.querySelector("input"), answer = part.querySelector(".answer");
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const show = () => {
    const [accuracy, share] = steps[range.value];
    const threshold = (range.value / 100).toFixed(2);
    part.querySelector("output").textContent = threshold;
    range.setAttribute("aria-valuetext", threshold);
    answer.textContent = accuracy === null ? "No photo is that sure."
      : `${percent(share)} of the ${photos.toLocaleString("en")} photos get an answer, of which ${percent(accuracy)} are right.`;
  };
  range.addEventListener("input", show);
  show();
}

// Photos open large
const dialog = document.querySelector("dialog");
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.open");
  if (button) {
    const image = button.querySelector("img");
    dialog.querySelector("img").src = image.src;
    dialog.querySelector("img").alt = image.alt;
    dialog.querySelector("p").textContent = image.alt;
    dialog.showModal();
  } else if (event.target.closest("dialog")) dialog.close();
});
