// The display of a stream. It is drawn again when `tick` changes, and asks nothing of any network.

const PHASES = ["not read", "waiting for its node", "no node has it", "requested", "running", "closing", "complete"];
const [UNWANTED, WAITING, OWNERLESS, REQUESTED, RUNNING, CLOSING, DONE] = PHASES.keys();
const MOVED = 0x80;
const UNKNOWN = 0xffff;
const NOBODY = 0xff;
const STATES = { new: "not started", closed: "stopped" };
const LEGEND = [
  ["caught up", "lag0"], ["1+ behind", "lag1"], ["10+", "lag2"], ["100+", "lag3"], ["1,000+", "lag4"],
  ["complete", "done"], ["moved just now", "moved"], ["waiting", "waiting"], ["no owner", "ownerless"],
];

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const count = (n) => (n === null || n === undefined ? "–" : n < 1e9 ? whole.format(n) : short.format(n));
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(Math.round(n)));
const megabytes = (n) => (n / 1e6 < 100 ? (n / 1e6).toFixed(1) : whole.format(n / 1e6));
const percent = (n) => `${Math.floor(100 * n)} %`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(s / 3600);
  const minutes = Math.floor(s / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

// Bytes come as a view into a larger buffer, at any offset.
function array(view, Type) {
  if (!view || !view.byteLength) return new Type(0);
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return new Type(bytes);
}

function element(tag, className, parent, attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (parent) parent.append(made);
  return made;
}

// Only what differs is touched: a reader's selection, and the work of a redraw, are spared.
function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function palette(node) {
  const style = getComputedStyle(node);
  return (name) => style.getPropertyValue(`--cbf-${name}`).trim();
}

// ---------------------------------------------------------------- throughput

function niceTop(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= most);
}

class Chart {
  constructor(parent) {
    const figure = element("figure", "cbf-figure cbf-chart", parent);
    const caption = element("figcaption", "cbf-caption", figure);
    element("span", "", caption).textContent = "Documents a second";
    this.range = element("span", "cbf-muted", caption);
    this.canvas = element("canvas", "", figure, { role: "img" });
  }

  draw(rates, { span, ended }, colour) {
    const box = this.canvas.parentElement;
    const width = Math.max(160, box.clientWidth);
    const height = 132;
    const context = sharp(this.canvas, width, height);
    const known = rates.filter((value) => Number.isFinite(value));
    const top = known.length ? niceTop(Math.max(1, ...known)) : 1;
    const [left, bottom] = [0, height - 18];
    const y = (value) => bottom - (value / top) * (bottom - 14);
    const x = (index) => left + (index / (rates.length - 1)) * (width - left);
    context.font = `11px ${getComputedStyle(box).fontFamily}`;
    context.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const at = Math.round(y(share * top)) + 0.5;
      context.strokeStyle = colour(share ? "rule" : "axis");
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(width, at);
      context.stroke();
    }
    context.fillStyle = colour("muted");
    const ago = (seconds) => (seconds >= 60 ? `${seconds / 60} min` : `${seconds} s`);
    const labels = [`${ago(span)} ${ended ? "before" : "ago"}`, ago(span / 2), ended ? "end" : "now"];
    ["left", "center", "right"].forEach((align, i) => {
      context.textAlign = align;
      context.fillText(labels[i], (i * width) / 2, height - 4);
    });
    const first = rates.findIndex((value) => Number.isFinite(value));
    if (first >= 0) this.trace(context, rates, first, { x, y, width, bottom }, colour);
    // Over the line, with a rim that keeps them apart.
    context.textAlign = "left";
    context.lineWidth = 3;
    context.strokeStyle = colour("background");
    context.fillStyle = colour("muted");
    for (const share of known.some((value) => value > 0) ? [0.5, 1] : []) {
      const label = [short.format(share * top), 0, Math.round(y(share * top)) - 3.5];
      context.strokeText(...label);
      context.fillText(...label);
    }
    const most = known.some((value) => value > 0) ? `peak ${count(Math.round(Math.max(...known)))}` : "";
    text(this.range, most);
    this.canvas.setAttribute("aria-label", `Documents a second over the last two minutes, ${most}`);
  }

  trace(context, rates, first, { x, y, width, bottom }, colour) {
    const line = new Path2D();
    for (let i = first; i < rates.length; i += 1) line[i > first ? "lineTo" : "moveTo"](x(i), y(rates[i] || 0));
    const area = new Path2D(line);
    area.lineTo(width, bottom);
    area.lineTo(x(first), bottom);
    context.fillStyle = colour("area");
    context.fill(area);
    context.strokeStyle = colour("line");
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.stroke(line);
  }
}

// ---------------------------------------------------------------- vbuckets

class Grid {
  constructor(parent, root) {
    const figure = this.figure = element("figure", "cbf-figure cbf-grid", parent);
    const caption = element("figcaption", "cbf-caption", figure);
    this.title = element("span", "", caption);
    this.sum = element("span", "cbf-muted", caption);
    this.canvas = element("canvas", "", figure, { tabindex: "0", role: "img" });
    this.tip = element("div", "cbf-tip", root, { role: "status", hidden: "" });
    this.root = root;
    this.cursor = -1;
    this.cells = new Uint8Array(0);
    this.canvas.addEventListener("mousemove", (event) => this.point(this.at(event)));
    this.canvas.addEventListener("mouseleave", () => this.point(-1));
    this.canvas.addEventListener("focus", () => this.point(Math.max(0, this.cursor)));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.pitch);
    const row = Math.floor((event.clientY - box.top) / this.pitch);
    const index = row * this.columns + column;
    return column < 0 || column >= this.columns || index >= this.cells.length ? -1 : index;
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key === "Escape") this.point(-1);
    else if (event.key in steps) {
      const next = this.cursor + steps[event.key];
      if (next >= 0 && next < this.cells.length) this.point(next);
    } else return;
    // Neither does the page scroll, nor the notebook go to another cell.
    event.preventDefault();
    event.stopPropagation();
  }

  point(index) {
    if (index === this.cursor) return;
    this.cursor = index;
    if (this.colour) this.paint();
    this.explain();
  }

  explain() {
    const index = this.cursor;
    this.tip.hidden = index < 0 || index >= this.cells.length;
    if (this.tip.hidden) return;
    const each = this.vbuckets > this.cells.length ? Math.ceil(this.vbuckets / this.cells.length) : 1;
    const from = index * each;
    const name = each > 1 ? `vbuckets ${from}–${Math.min(this.vbuckets, from + each) - 1}` : `vbucket ${index}`;
    const phase = this.cells[index] & ~MOVED;
    const owner = this.owners[index];
    const node = owner === NOBODY ? "no node" : this.names[owner] || `node ${owner}`;
    const code = this.lags[index];
    const lag = code === UNKNOWN ? "lag unknown" : `${count((code & 2047) * 2 ** (code >> 11))} behind`;
    const lines = [name, PHASES[phase], node];
    if (phase !== UNWANTED && phase !== DONE) lines.push(lag);
    if (this.cells[index] & MOVED) lines.push("moved just now");
    text(this.tip, lines.join("\n"));
    const [box, root] = [this.canvas.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const x = box.left - root.left + ((index % this.columns) + 0.5) * this.pitch;
    const y = box.top - root.top + (Math.floor(index / this.columns) + 1) * this.pitch;
    const room = root.width - this.tip.offsetWidth - 8;
    this.tip.style.left = `${Math.max(8, Math.min(room, x - this.tip.offsetWidth / 2))}px`;
    this.tip.style.top = `${y + 6}px`;
  }

  draw(cells, lags, owners, names, head, colour) {
    Object.assign(this, { cells, lags, owners, names, colour, vbuckets: head.vbuckets });
    const done = head.bounded && head.wanted ? `${count(head.done)} of ${count(head.wanted)} complete` : "";
    text(this.title, head.vbuckets ? `${count(head.vbuckets)} vbuckets` : "vbuckets");
    text(this.sum, done || (head.wanted ? `${count(head.running)} streaming` : ""));
    this.canvas.setAttribute("aria-label", `${this.title.textContent}, ${this.sum.textContent}; arrow keys look at each`);
    this.paint();
    this.explain();
  }

  paint() {
    const { cells, colour } = this;
    const size = cells.length || 1024;
    const columns = size >= 256 ? 64 : size >= 64 ? 32 : Math.max(8, Math.ceil(size / 2));
    const rows = Math.ceil(size / columns);
    const room = Math.max(160, this.canvas.parentElement.clientWidth);
    const pitch = Math.max(3, Math.min(16, Math.floor(room / columns)));
    Object.assign(this, { columns, pitch });
    Object.assign(this.canvas.dataset, { columns, pitch });
    const context = sharp(this.canvas, columns * pitch, rows * pitch);
    const gap = pitch > 4 ? 1 : 0;
    const fill = {};
    for (const [, name] of LEGEND) fill[name] = colour(name);
    const lags = [fill.lag0, fill.lag1, fill.lag2, fill.lag3, fill.lag4];
    for (let i = 0; i < size; i += 1) {
      const x = (i % columns) * pitch;
      const y = Math.floor(i / columns) * pitch;
      const side = pitch - gap;
      const phase = cells.length ? cells[i] & ~MOVED : WAITING;
      const moved = cells.length && cells[i] & MOVED;
      if (phase === WAITING || phase === REQUESTED || phase === OWNERLESS) {
        context.strokeStyle = phase === OWNERLESS ? fill.ownerless : fill.waiting;
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
        if (phase === OWNERLESS) {
          context.beginPath();
          context.moveTo(x + 1, y + 1);
          context.lineTo(x + side - 1, y + side - 1);
          context.moveTo(x + side - 1, y + 1);
          context.lineTo(x + 1, y + side - 1);
          context.stroke();
        } else if (phase === REQUESTED) {
          context.fillStyle = fill.waiting;
          context.fillRect(x + side / 2 - 1, y + side / 2 - 1, 2, 2);
        }
      } else if (phase !== UNWANTED) {
        const code = cells.length ? this.lags[i] : 0;
        const behind = code === UNKNOWN ? 0 : (code & 2047) * 2 ** (code >> 11);
        const level = behind < 1 ? 0 : Math.min(4, 1 + Math.floor(Math.log10(behind)));
        context.fillStyle = moved ? fill.moved : phase === DONE ? fill.done : lags[level];
        context.fillRect(x, y, side, side);
        if (moved && side > 4) {
          // A mark besides the colour, for those who cannot tell it.
          context.fillStyle = colour("background");
          context.fillRect(x + side / 2 - 1, y + side / 2 - 1, 2, 2);
        }
      }
      if (i === this.cursor) {
        context.strokeStyle = colour("text");
        context.lineWidth = 2;
        context.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
      }
    }
  }
}

// ---------------------------------------------------------------- tables

class Nodes {
  constructor(parent) {
    const table = this.table = element("table", "cbf-nodes", parent);
    const row = element("tr", "", element("thead", "", table));
    const columns = {
      Node: "", Streaming: "vbuckets", Documents: "received", "Docs / s": "", "MB / s": "",
      Behind: "changes that the node has and that were not received",
      Window: "of what the node sends ahead: received and not consumed", Reconnects: "",
    };
    for (const [name, title] of Object.entries(columns)) {
      element("th", "", row, { scope: "col", title }).textContent = name;
    }
    this.what = row.children[1];
    this.body = element("tbody", "", table);
    this.more = element("div", "cbf-muted cbf-more", parent, { hidden: "" });
  }

  draw({ rows, more }, bounded) {
    text(this.what, bounded ? "Complete" : "Streaming");
    this.table.hidden = !rows.length;
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
    rows.forEach(([node, vbuckets, ready, documents, perSecond, bytes, lag, fill, reconnects], at) => {
      let row = this.body.children[at];
      if (!row) {
        row = element("tr", "", this.body);
        element("th", "", row, { scope: "row" });
        for (let i = 0; i < 5; i += 1) element("td", "", row);
        element("i", "", element("span", "cbf-meter", element("td", "cbf-fill", row)));
        element("b", "", row.lastChild);
        element("td", "", row);
      }
      const cells = row.children;
      text(cells[0], node);
      [`${count(ready)} of ${count(vbuckets)}`, count(documents), rate(perSecond), megabytes(bytes), count(lag)]
        .forEach((value, i) => text(cells[i + 1], value));
      cells[6].querySelector("i").style.width = `${Math.min(100, 100 * fill)}%`;
      cells[6].classList.toggle("cbf-full", fill > 0.8);
      text(cells[6].querySelector("b"), percent(Math.min(1, fill)));
      text(cells[7], count(reconnects));
    });
    this.more.hidden = !more;
    text(this.more, `and ${count(more)} more nodes`);
  }
}

class Problems {
  constructor(parent) {
    this.section = element("section", "cbf-problems", parent, { role: "log", "aria-label": "Last problems", hidden: "" });
    element("h4", "cbf-caption", this.section).textContent = "Last problems";
    this.list = element("ol", "", this.section);
  }

  draw({ rows, more }) {
    this.section.hidden = !rows.length;
    const key = JSON.stringify([rows, more]);
    if (key === this.key) return;
    this.key = key;
    this.list.replaceChildren();
    for (const [at, place, message, hint] of rows) {
      const item = element("li", "", this.list);
      element("time", "", item).textContent = duration(at);
      const what = element("div", "", item);
      element("span", "", what).textContent = message;
      if (place) element("span", "cbf-muted", what).textContent = ` ${place}`;
      if (hint) element("div", "cbf-hint", what).textContent = hint;
    }
    if (more) element("li", "cbf-muted", this.list).textContent = `and ${count(more)} before these`;
  }
}

class Fold {
  constructor(parent, redraw) {
    this.details = element("details", "cbf-fold", parent);
    element("summary", "", this.details).textContent = "All counters";
    this.list = element("div", "cbf-counters", this.details);
    this.details.addEventListener("toggle", redraw);
  }

  draw(names, values) {
    if (!this.details.open) return;
    if (this.list.children.length !== names.length) {
      this.list.replaceChildren();
      for (const name of names) {
        const pair = element("div", "", this.list);
        element("span", "", pair).textContent = name.replace(/^tot_/, "");
        element("span", "", pair);
      }
    }
    names.forEach((_, i) => {
      const pair = this.list.children[i];
      text(pair.lastChild, count(values[i] || 0));
      pair.classList.toggle("cbf-zero", !values[i]);
    });
  }
}

// ---------------------------------------------------------------- all of it

function render({ model, el }) {
  const root = element("div", "cbf", el, { role: "region", "aria-label": "Stream statistics" });
  const header = element("header", "cbf-head", root);
  const bucket = element("span", "cbf-bucket", header);
  const state = element("span", "cbf-state", header);
  const elapsed = element("span", "cbf-elapsed", header, { title: "since it runs" });
  const bar = element("div", "cbf-bar", root, { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "received" });
  const part = element("i", "", bar);
  // No list elements: JupyterLab has a style of its own for them.
  const figures = element("div", "cbf-figures", root);
  const figure = (label) => {
    const pair = element("div", "", figures);
    element("div", "cbf-muted", pair).textContent = label;
    return { pair, value: element("strong", "", pair), more: element("small", "", pair) };
  };
  const documents = figure("Documents");
  const perSecond = figure("Documents / s");
  const bytes = figure("MB / s");
  const lag = figure("Behind");
  const eta = figure("Time to go");
  const columns = element("div", "cbf-columns", root);
  const chart = new Chart(columns);
  const grid = new Grid(columns, root);
  const legend = element("ul", "cbf-legend", grid.figure, { "aria-label": "What the colours of vbuckets mean" });
  const marks = Object.fromEntries(LEGEND.map(([label, name]) => {
    const item = element("li", "", legend);
    element("i", `cbf-${name}`, item);
    item.append(label);
    return [name, item];
  }));
  const nodes = new Nodes(root);
  const problems = new Problems(root);
  const fold = new Fold(root, () => draw());

  function draw() {
    const head = model.get("head");
    if (!root.isConnected || !head || !head.state) return;
    const colour = palette(root);
    const names = model.get("nodes").rows.map(([name]) => name);
    text(bucket, head.bucket || "no bucket yet");
    text(state, STATES[head.state] || head.state);
    state.dataset.state = head.state;
    text(elapsed, duration(head.elapsed));
    bar.hidden = head.share === null;
    part.style.width = `${100 * (head.share || 0)}%`;
    bar.setAttribute("aria-valuenow", String(Math.floor(100 * (head.share || 0))));
    text(documents.value, count(head.documents));
    text(documents.more, `${megabytes(head.nbytes)} MB`);
    text(perSecond.value, rate(head.rate));
    text(bytes.value, megabytes(head.bytesRate));
    text(perSecond.more, head.ended ? "on average" : "now");
    text(bytes.more, head.ended ? "on average" : "now");
    text(lag.value, count(head.lag));
    text(lag.more, head.lag === null ? "not known yet" : head.lag ? "changes" : "caught up");
    eta.pair.hidden = !head.bounded;
    text(eta.value, head.state === "complete" ? "0:00" : duration(head.eta));
    text(eta.more, head.share === null ? "" : percent(head.share));
    marks.done.hidden = !head.bounded;
    chart.draw(array(model.get("spark"), Float32Array), head, colour);
    const cells = array(model.get("cells"), Uint8Array);
    grid.draw(cells, array(model.get("lags"), Uint16Array), array(model.get("owners"), Uint8Array), names, head, colour);
    nodes.draw(model.get("nodes"), head.bounded);
    problems.draw(model.get("problems"));
    fold.draw(model.get("counter_names"), array(model.get("counters"), Float64Array));
  }

  // A theme is changed, or a window, also when nothing streams any more.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = new MutationObserver(draw);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  const sizes = new ResizeObserver(draw);
  sizes.observe(root);
  dark.addEventListener("change", draw);
  model.on("change:tick", draw);
  draw();
  return () => {
    themes.disconnect();
    sizes.disconnect();
    dark.removeEventListener("change", draw);
    model.off("change:tick", draw);
  };
}

export default { render };
