// The first view: two columns of tokens with a line for each weight between them.

const MOST_LINES = 3000; // drawn at once, the largest; more would only be a grey surface
const STEPS = 12; // of opacity: lines of one head and one step are drawn in one stroke
const scroller = byId("scroller");
const lineCanvas = byId("lines");
const columns = { queries: byId("queries"), keys: byId("keys") };
let overview = { of: null, lines: [] }; // while no token is looked at

function fillColumns() {
  for (const [side, list] of Object.entries(columns)) {
    list.replaceChildren(
      ...tokensOf(side).map((text, index) => {
        const option = document.createElement("li");
        const token = document.createElement("bdi");
        token.className = "token";
        token.dir = "auto";
        token.textContent = token.title = text;
        const weight = document.createElement("span");
        weight.className = "weight";
        weight.ariaHidden = "true";
        option.append(token, weight);
        option.setAttribute("role", "option");
        option.dataset.index = index;
        option.tabIndex = -1;
        return option;
      }),
    );
  }
}

/** [head, query, key, weight] of the largest weights of the chosen heads. */
function largestLines(layer, heads) {
  const { t, s, codes, largest } = layer;
  let top = 0;
  for (const head of heads) for (let q = 0; q < t; q++) top = Math.max(top, largest[head * t + q]);
  // How many there are of each 255th of the largest says where to stop. Millions are looked at, hence the plain loops.
  const counts = new Uint32Array(256), lines = [];
  for (const head of heads)
    for (let row = head * t; row < (head + 1) * t; row++) {
      const factor = largest[row] / top;
      for (let i = row * s; i < (row + 1) * s; i++) counts[Math.floor(codes[i] * factor)]++;
    }
  let least = 255, total = counts[255];
  while (least > 3 && total + counts[least - 1] <= MOST_LINES) total += counts[--least];
  for (const head of heads)
    for (let q = 0; q < t; q++) {
      const row = head * t + q, factor = largest[row] / top;
      if (Math.floor(255 * factor) < least) continue;
      for (let k = 0; k < s; k++)
        if (Math.floor(codes[row * s + k] * factor) >= least && lines.length < MOST_LINES)
          lines.push([head, q, k, weightAt(layer, head, q, k)]);
    }
  return { lines, top };
}

function drawLines(layer) {
  const heads = chosenHeads(), look = looked();
  const height = scroller.clientHeight, width = scroller.clientWidth;
  const context = prepare(lineCanvas, width, height);
  lineCanvas.style.marginBottom = `${-height}px`;
  const row = columns.queries.firstElementChild.offsetHeight, above = columns.queries.offsetTop - scroller.scrollTop;
  const left = columns.queries.offsetLeft + columns.queries.offsetWidth + 2, right = columns.keys.offsetLeft - 2;
  // The lines of different heads between the same tokens lie beside each other.
  const place = new Map(heads.map((head, i) => [head, heads.length > 1 ? (i / (heads.length - 1) - 0.5) * row * 0.6 : 0]));
  const y = (index, head) => above + (index + 0.5) * row + place.get(head);
  let lines, top;
  if (look) {
    const length = tokensOf(look.side === "queries" ? "keys" : "queries").length;
    lines = [];
    for (const head of heads) {
      const weights = weightsOf(layer, head, look.side, look.index);
      for (let i = 0; i < length; i++)
        lines.push(look.side === "queries" ? [head, look.index, i, weights[i]] : [head, i, look.index, weights[i]]);
    }
    top = lines.reduce((most, line) => Math.max(most, line[3]), 0);
    lines = lines.filter((line) => line[3] > top / 100).sort((a, b) => b[3] - a[3]).slice(0, MOST_LINES);
  } else {
    const of = `${state.kind} ${state.layer} ${heads}`;
    if (overview.of !== of) overview = { of, ...largestLines(layer, heads) };
    ({ lines, top } = overview);
  }

  const batches = new Map();
  for (const [head, q, k, weight] of lines) {
    const from = y(q, head), to = y(k, head);
    if (Math.max(from, to) < 0 || Math.min(from, to) > height) continue;
    const step = Math.min(STEPS - 1, Math.floor((weight / top) * STEPS));
    const name = head * STEPS + step;
    if (!batches.has(name)) batches.set(name, new Path2D());
    const path = batches.get(name), middle = (left + right) / 2;
    path.moveTo(left, from);
    path.bezierCurveTo(middle, from, middle, to, right, to);
  }
  context.lineCap = "round";
  for (const [name, path] of [...batches].sort(([a], [b]) => (a % STEPS) - (b % STEPS))) {
    const part = ((name % STEPS) + 0.5) / STEPS;
    context.strokeStyle = headColour(Math.floor(name / STEPS));
    context.globalAlpha = look ? 0.2 + 0.75 * part : 0.06 + 0.7 * part * part;
    context.lineWidth = look ? 1 + 2.5 * part : 0.8 + 1.4 * part;
    context.stroke(path);
  }
  shade(layer, heads, look);
}

/** The tokens on the other side of the one looked at: darker and with a number, the more weight they have. */
function shade(layer, heads, look) {
  const matches = new Set(found().map(({ side, index }) => `${side} ${index}`));
  const same = queryTokens(state.kind) === keyTokens(state.kind); // then found() names those of one side only
  for (const [side, list] of Object.entries(columns)) {
    const other = look && look.side !== side;
    const mean = other && heads.length ? meanWeights(layer, heads, look) : null;
    const top = mean ? mean.reduce((a, b) => Math.max(a, b), 0) : 0;
    const options = list.children;
    for (let i = 0; i < options.length; i++) {
      const option = options[i], weight = mean && top ? mean[i] : 0;
      const pinned = state.pinned?.side === side && state.pinned.index === i;
      change(option, "shade", weight > top / 100 ? Math.ceil((10 * weight) / top) : "");
      change(option, "found", matches.has(`${same ? "queries" : side} ${i}`) ? "true" : "");
      change(option, "looked", look?.side === side && look.index === i ? "true" : "");
      const text = weight >= 0.005 && weight > top / 20 ? weight.toFixed(2) : "";
      if (option.lastChild.textContent !== text) option.lastChild.textContent = text;
      if (option.ariaSelected !== String(pinned)) option.ariaSelected = pinned;
      const tab = (state.pinned?.side === side ? pinned : i === 0) ? 0 : -1; // one of each column is reached by Tab
      if (option.tabIndex !== tab) option.tabIndex = tab;
    }
  }
}

/** Only what changes is written: with hundreds of tokens, each write costs the browser a look at its styles. */
function change(option, name, value) {
  if ((option.dataset[name] ?? "") === String(value)) return;
  if (value === "") delete option.dataset[name];
  else option.dataset[name] = value;
}

function meanWeights(layer, heads, look) {
  const mean = new Float32Array(look.side === "queries" ? layer.s : layer.t);
  for (const head of heads) weightsOf(layer, head, look.side, look.index).forEach((w, i) => (mean[i] += w / heads.length));
  return mean;
}

/** Scroll to a token, in the middle if it is out of sight. */
function bringIntoSight(token, block = "nearest") {
  const option = optionOf(token), top = option.offsetTop - scroller.scrollTop;
  const outside = top < 0 || top > scroller.clientHeight - option.offsetHeight;
  option.scrollIntoView({ block: outside ? block : "nearest", inline: "nearest" });
}

function optionOf({ side, index }) {
  return columns[side].children[index];
}

function watchLines() {
  for (const [side, list] of Object.entries(columns)) {
    const at = (event) => event.target.closest?.("[role=option]");
    list.addEventListener("pointerover", (event) => {
      const option = at(event);
      if (event.pointerType === "touch" || !option) return;
      hovered = { side, index: Number(option.dataset.index) };
      update();
    });
    list.addEventListener("pointerleave", () => {
      hovered = null;
      update();
    });
    list.addEventListener("click", (event) => {
      const option = at(event);
      if (!option) return;
      const index = Number(option.dataset.index);
      const again = state.pinned?.side === side && state.pinned.index === index;
      if (again) hovered = null;
      pin(again ? null : { side, index }, { focus: true });
    });
    list.addEventListener("keydown", (event) => {
      const option = at(event);
      if (!option || event.ctrlKey || event.metaKey || event.altKey) return;
      const index = Number(option.dataset.index), last = list.children.length - 1;
      const to = { ArrowUp: index - 1, ArrowDown: index + 1, Home: 0, End: last, PageUp: index - 10, PageDown: index + 10 };
      let next = null;
      if (event.key in to) next = { side, index: Math.min(last, Math.max(0, to[event.key])) };
      else if ((event.key === "ArrowRight" && side === "queries") || (event.key === "ArrowLeft" && side === "keys")) {
        const across = side === "queries" ? "keys" : "queries";
        next = { side: across, index: Math.min(index, columns[across].children.length - 1) };
      } else if (event.key === "Enter" || event.key === " ") next = { side, index };
      if (!next) return;
      event.preventDefault();
      hovered = null;
      pin(next, { focus: true });
    });
  }
  scroller.addEventListener("scroll", () => update(), { passive: true });
}
