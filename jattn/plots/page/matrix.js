// The second view: the matrix of weights, a row for each query, a column for each key.

const matrixCanvas = byId("matrix");
const matrixScroller = byId("matrix-scroller");
let matrix = { of: null }; // what was drawn last: the mean weights, and where the cells are
let hoveredCell = null;

const lookedCell = () => hoveredCell ?? state.cell;

function drawMatrix(layer) {
  const heads = chosenHeads(), { t, s } = layer;
  const room = matrixScroller.clientWidth - 12;
  const of = [state.kind, state.layer, heads, room, dark.matches, devicePixelRatio].join(" ");
  if (matrix.of !== of) {
    const mean = meanOf(layer, heads);
    const largest = mean.reduce((a, b) => Math.max(a, b), 0);
    // Labels only where a cell is as large as a line of small text.
    const context = matrixCanvas.getContext("2d");
    context.font = labelFont(13, true);
    const widths = [...tokensOf("queries"), ...tokensOf("keys")].map((token) => context.measureText(token.slice(0, 40)).width);
    const labels = Math.min(140, room * 0.3, 12 + widths.reduce((a, b) => Math.max(a, b), 0));
    const labelled = (room - labels) / s >= 11;
    const margin = labelled ? labels : 0;
    const height = parseFloat(getComputedStyle(matrixScroller).maxHeight) - margin - 14;
    const cell = Math.min(34, (room - margin) / s, Math.max(18, height / t)); // all in sight, if they are large then
    const ratio = devicePixelRatio || 1;
    const shown = largestOfBlocks(mean, t, s, Math.ceil(t * cell * ratio), Math.ceil(s * cell * ratio));
    matrix = { of, mean, largest, margin, cell, picture: pixels(shown.weights, shown.rows, shown.columns, largest) };
  }
  const { margin, cell, picture, largest } = matrix;
  const width = margin + s * cell, height = margin + t * cell;
  const context = prepare(matrixCanvas, width, height);
  const style = getComputedStyle(document.body);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, margin, margin, s * cell, t * cell);
  context.strokeStyle = style.getPropertyValue("--edge");
  context.strokeRect(margin + 0.5, margin + 0.5, s * cell - 1, t * cell - 1);
  const pinned = state.pinned && { [state.pinned.side === "queries" ? "q" : "k"]: state.pinned.index }; // a row, or a column
  const look = lookedCell() ?? pinned;
  if (margin) writeLabels(context, look, style);
  if (look) {
    context.strokeStyle = style.getPropertyValue("--accent");
    const size = Math.max(cell, 5), out = (size - cell) / 2; // a cell that is smaller than this could not be seen
    const x = margin + look.k * cell - out, y = margin + look.q * cell - out;
    context.globalAlpha = lookedCell() ? 0.55 : 1;
    if (look.q !== undefined) context.strokeRect(margin, y, s * cell, size);
    if (look.k !== undefined) context.strokeRect(x, margin, size, t * cell);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    if (lookedCell()) context.strokeRect(x, y, size, size);
  }
  byId("scale-end").textContent = heads.length ? largest.toPrecision(2) : "no heads chosen";
  const bar = byId("ramp");
  bar.getContext("2d").drawImage(pixels(Float32Array.from({ length: 256 }, (_, i) => i), 1, 256, 255), 0, 0, bar.width, bar.height);
}

const labelFont = (size, bold) => `${bold ? "650 " : ""}${size}px system-ui, sans-serif`;

function writeLabels(context, look, style) {
  const { margin, cell } = matrix;
  const size = Math.min(13, cell);
  context.textBaseline = "middle";
  const write = (token, bold, x) => {
    context.font = labelFont(size, bold);
    context.fillStyle = style.getPropertyValue(bold ? "--text" : "--faint");
    context.fillText(shortened(context, token, margin - 8), x, 0);
  };
  const placed = (x, y, turn, draw) => {
    context.save();
    context.translate(x, y);
    context.rotate(turn);
    draw();
    context.restore();
  };
  context.textAlign = "right";
  tokensOf("queries").forEach((token, q) =>
    placed(margin, margin + (q + 0.5) * cell, 0, () => write(token, look?.q === q, -5)));
  context.textAlign = "left";
  tokensOf("keys").forEach((token, k) =>
    placed(margin + (k + 0.5) * cell, margin, -Math.PI / 2, () => write(token, look?.k === k, 5)));
}

function shortened(context, text, width) {
  let characters = [...text];
  if (context.measureText(text).width <= width) return text;
  while (characters.length > 1 && context.measureText(`${characters.join("")}…`).width > width) characters.pop();
  return `${characters.join("")}…`;
}

function watchMatrix() {
  const cellAt = (event) => {
    if (matrix.of === null) return null;
    const box = matrixCanvas.getBoundingClientRect(), { margin, cell } = matrix;
    const k = Math.floor((event.clientX - box.left - margin) / cell), q = Math.floor((event.clientY - box.top - margin) / cell);
    const inside = q >= 0 && k >= 0 && q < tokensOf("queries").length && k < tokensOf("keys").length;
    return inside ? { q, k } : null;
  };
  matrixCanvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    hoveredCell = cellAt(event);
    update();
  });
  matrixCanvas.addEventListener("pointerleave", () => {
    hoveredCell = null;
    update();
  });
  matrixCanvas.addEventListener("click", (event) => {
    const cell = cellAt(event), again = cell && state.cell?.q === cell.q && state.cell.k === cell.k;
    if (again) hoveredCell = null;
    chooseCell(again ? null : cell);
  });
  matrixCanvas.addEventListener("keydown", (event) => {
    const t = tokensOf("queries").length, s = tokensOf("keys").length;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const from = state.cell ?? { q: 0, k: 0 };
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -s], End: [0, s], PageUp: [-t, 0], PageDown: [t, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    hoveredCell = null;
    const clamp = (x, n) => Math.min(n - 1, Math.max(0, x));
    chooseCell(state.cell ? { q: clamp(from.q + by[0], t), k: clamp(from.k + by[1], s) } : from);
  });
}

function chooseCell(cell) {
  state.cell = cell;
  update({ speak: true });
}
