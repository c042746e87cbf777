// The controls, what is said about the token looked at, and the drawing of it all.

const tabs = VIEWS.map((view) => byId(`tab-${view}`));
const NAMED = 8; // how many are listed of those that have most weight
const SPOKEN = 3;

// Drawing: at most once for each picture of the screen, and never an older choice after a newer one.

let current = null; // the layer that is drawn
let wanted = 0;
let scheduled = false;
let toSpeak = false;
let toSee = null; // where the pinned token shall come when its weights are written, which takes room

function update({ speak = false } = {}) {
  toSpeak ||= speak;
  remember();
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => draw().catch((error) => {
    byId("details").textContent = `This browser could not draw the weights: ${error.message}`;
    throw error;
  }));
}

async function draw() {
  scheduled = false;
  const number = ++wanted, kind = state.kind, layer = state.layer;
  if (current?.kind !== kind || current.number !== layer) {
    const unpackedLayer = await layerOf(kind, layer);
    if (number !== wanted) return; // meanwhile something else was chosen
    current = { kind, number: layer, layer: unpackedLayer };
  }
  if (state.view === "lines") drawLines(current.layer);
  if (state.view === "matrix") drawMatrix(current.layer);
  if (state.view === "heads") markThumbnails();
  describe(current.layer);
  if (toSee && state.pinned) bringIntoSight(state.pinned, toSee);
  toSee = null;
  document.documentElement.dataset.drawn = number;
}

// Words.

function describe(layer) {
  const details = byId("details"), heads = chosenHeads(), spoken = toSpeak;
  toSpeak = false;
  let sentence = "";
  details.replaceChildren();
  const cell = state.view === "matrix" ? lookedCell() : null;
  const look = state.view === "lines" ? looked() : state.view === "matrix" && !cell ? state.pinned : null;
  if (!heads.length) {
    sentence = headCount() ? "No heads are chosen." : `Layer ${state.layer} has no heads.`;
    details.append(element("p", sentence));
  } else if (look) {
    const query = look.side === "queries", name = tokensOf(look.side)[look.index];
    const others = tokensOf(query ? "keys" : "queries"), mean = meanWeights(layer, heads, look);
    const order = [...mean.keys()].sort((a, b) => mean[b] - mean[a] || a - b).filter((i) => mean[i] > 0);
    details.append(element("h2", name, { dir: "auto" }));
    const which = `${query ? "query" : "key"} ${look.index}, ${query ? "attends most to" : "gets most from"}`;
    details.append(element("p", order.length ? which : `${query ? "query" : "key"} ${look.index}, ${query ? "attends to nothing" : "gets nothing"}`));
    const perHead = heads.map((head) => weightsOf(layer, head, look.side, look.index));
    details.append(list(order.slice(0, NAMED).map((i) => [others[i], { side: query ? "keys" : "queries", index: i }, mean[i], perHead.map((w) => w[i] / heads.length)]), heads, mean[order[0]]));
    details.append(element("p", footnote(heads)));
    const most = order.slice(0, SPOKEN).map((i) => `'${others[i]}' ${mean[i].toFixed(2)}`).join(", ");
    sentence = query
      ? `query '${name}' attends ${most ? `most to ${most}` : "to nothing"}`
      : `key '${name}' gets ${most ? `most from ${most}` : "nothing"}`;
  } else if (cell) {
    const [q, k] = [tokensOf("queries")[cell.q], tokensOf("keys")[cell.k]];
    const each = heads.map((head) => weightAt(layer, head, cell.q, cell.k)), mean = each.reduce((a, b) => a + b, 0) / heads.length;
    details.append(element("h2", `${q} → ${k}`, { dir: "auto" }), element("p", `query ${cell.q}, key ${cell.k}`));
    const rows = heads.map((head, i) => [`head ${head}`, null, each[i], heads.map((other) => (other === head ? each[i] : 0))]);
    if (heads.length > 1) rows.unshift(["mean", null, mean, each.map((w) => w / heads.length)]);
    details.append(list(rows, heads, Math.max(...each)));
    sentence = `query '${q}', key '${k}': ${mean.toFixed(3)}`;
  } else {
    const hints = {
      lines: "Hover or tap a token to see its weights. Without one, the strongest lines of the chosen heads are drawn.",
      matrix: "Hover or tap a cell to see its weight. The matrix is the mean of the chosen heads.",
      heads: "Choose a picture to see that head alone.",
    };
    details.append(element("p", hints[state.view]));
  }
  if (spoken && sentence) byId("live").textContent = sentence;
}

const footnote = (heads) =>
  (heads.length === 1 ? `layer ${state.layer}, head ${heads[0]}` : `mean of ${heads.length} heads of layer ${state.layer}`) +
  (state.pinned && !hovered ? "; Esc or a second click lets go" : "");

/** Rows of a name, a weight and a bar with a piece for each head. */
function list(rows, heads, largest) {
  const made = document.createElement("ol");
  for (const [name, token, weight, pieces] of rows) {
    const row = document.createElement("li"), bar = element("span", "", { className: "bar", ariaHidden: "true" });
    pieces.forEach((piece, i) => {
      const part = document.createElement("i");
      part.style.width = `${largest > 0 ? (100 * piece) / largest : 0}%`;
      part.style.background = headColour(heads[i]);
      bar.append(part);
    });
    const label = element(token ? "button" : "span", "");
    label.append(element("bdi", name, { dir: "auto" }));
    if (token) {
      label.append(element("small", token.index));
      label.title = "show where it is";
      label.addEventListener("click", () => bringIntoSight(token, "center"));
    }
    row.append(label, element("span", weight.toFixed(3), { className: "weight" }), bar);
    made.append(row);
  }
  return made;
}

// Controls.

function pin(token, { focus = false, block = "nearest" } = {}) {
  state.pinned = token;
  if (token) {
    const option = optionOf(token);
    option.tabIndex = 0;
    if (focus) option.focus({ preventScroll: true });
    toSee = block;
  }
  showFound();
  update({ speak: true });
}

function showView(view) {
  state.view = view;
  hovered = hoveredCell = null;
  VIEWS.forEach((name, i) => {
    const chosen = name === view;
    tabs[i].setAttribute("aria-selected", chosen);
    tabs[i].tabIndex = chosen ? 0 : -1;
    byId(`panel-${name}`).hidden = !chosen;
  });
  showHeads();
  update();
}

/** A button for each head of the layer, and which are chosen. */
function showHeads() {
  const box = byId("heads"), n = headCount();
  if (box.children.length !== n)
    box.replaceChildren(
      ...Array.from({ length: n }, (_, head) => {
        const button = element("button", head, { title: "double-click: this head alone" });
        button.ariaLabel = `head ${head}`;
        button.addEventListener("click", () => {
          if (!state.heads.delete(head)) state.heads.add(head);
          showHeads();
          update({ speak: true });
        });
        button.addEventListener("dblclick", () => {
          state.heads = new Set([head]);
          showHeads();
          update({ speak: true });
        });
        return button;
      }),
    );
  [...box.children].forEach((button, head) => {
    button.setAttribute("aria-pressed", state.heads.has(head));
    button.style.setProperty("--head", headColour(head));
    button.style.setProperty("--on-head", dark.matches ? "#12151c" : "#fff");
  });
}

function showKind() {
  byId("kind").value = state.kind;
  byId("layer").replaceChildren(...data.kinds[state.kind].heads.map((_, layer) => new Option(layer, layer)));
  byId("layer").value = state.layer;
  byId("layer-label").hidden = data.kinds[state.kind].heads.length === 1;
  byId("heads-group").hidden = MOST_HEADS === 1;
  fillColumns();
  fillThumbnails();
}

/** The tokens that hold what is searched for: queries first, then keys that are other tokens. */
function found() {
  const wantedText = state.search.toLowerCase();
  if (!wantedText) return [];
  const sides = queryTokens(state.kind) === keyTokens(state.kind) ? ["queries"] : ["queries", "keys"];
  return sides.flatMap((side) =>
    tokensOf(side).flatMap((token, index) => (token.toLowerCase().includes(wantedText) ? [{ side, index }] : [])));
}

function goToMatch(by) {
  const matches = found();
  if (!matches.length) return;
  const same = (match) => match.side === state.pinned?.side && match.index === state.pinned.index;
  const at = matches.findIndex(same), next = at < 0 ? (by > 0 ? 0 : matches.length - 1) : (at + by + matches.length) % matches.length;
  if (state.view === "heads") showView("lines");
  state.cell = null;
  hovered = null;
  pin(matches[next], { block: "center" });
}

function showFound() {
  const matches = found();
  const at = matches.findIndex((match) => match.side === state.pinned?.side && match.index === state.pinned.index);
  byId("found").textContent = !state.search ? "" : !matches.length ? "not found" : `${at < 0 ? "" : `${at + 1} of `}${matches.length}${at < 0 ? " found" : ""}`;
}

function showAll() {
  showKind();
  showView(state.view);
  byId("search").value = state.search;
  showFound();
  toSee = "center";
}

function start() {
  document.title = byId("title").textContent = data.title;
  byId("kind").replaceChildren(...data.kinds.map((kind, i) => new Option(kind.name, i)));
  byId("kind-label").hidden = data.kinds.length === 1;

  byId("kind").addEventListener("change", (event) => {
    const every = chosenHeads().length === headCount();
    state.kind = Number(event.target.value);
    state.layer = Math.min(state.layer, data.kinds[state.kind].heads.length - 1);
    state.pinned = state.cell = hovered = hoveredCell = null;
    if (every) state.heads = allHeads();
    showKind();
    showHeads();
    showFound();
    update();
  });
  byId("layer").addEventListener("change", (event) => {
    const every = chosenHeads().length === headCount(); // all heads stay all heads, also of a layer that has more
    state.layer = Number(event.target.value);
    if (every) state.heads = allHeads();
    showHeads();
    update({ speak: true });
  });
  byId("all").addEventListener("click", () => {
    state.heads = allHeads();
    showHeads();
    update({ speak: true });
  });
  byId("none").addEventListener("click", () => {
    state.heads = new Set();
    showHeads();
    update({ speak: true });
  });
  byId("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    showFound();
    update();
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    goToMatch(event.shiftKey ? -1 : 1);
  });
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => showView(VIEWS[i]));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: VIEWS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = (to + VIEWS.length) % VIEWS.length;
      showView(VIEWS[next]);
      tabs[next].focus();
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.matches("input, select")) return;
    hovered = hoveredCell = state.cell = null;
    pin(null);
  });
  watchLines();
  watchMatrix();
  addEventListener("hashchange", () => {
    restore(location.hash.slice(1));
    showAll();
  });
  new ResizeObserver(() => update()).observe(document.querySelector("main"));
  dark.addEventListener("change", () => {
    matrix = { of: null };
    showHeads();
    fillThumbnails();
    update();
  });
  restore(location.hash.slice(1));
  showAll();
}

start();
