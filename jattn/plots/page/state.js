// What is chosen, and the address that holds it.

const VIEWS = ["lines", "matrix", "heads"];
const state = {
  kind: 0,
  layer: 0,
  heads: new Set(),
  view: "lines",
  pinned: null, // {side: "queries" or "keys", index}, a token that was chosen
  cell: null, // {q, k} in the matrix
  search: "",
};
let hovered = null; // as pinned, while the mouse is over it

const looked = () => hovered ?? state.pinned;
const headCount = () => data.kinds[state.kind].heads[state.layer];
const chosenHeads = () => [...state.heads].filter((head) => head < headCount()).sort((a, b) => a - b);
const tokensOf = (side) => (side === "queries" ? queryTokens(state.kind) : keyTokens(state.kind));
const allHeads = () => new Set(Array(headCount()).keys());

function fragment() {
  const parts = [];
  if (state.kind) parts.push(`kind=${state.kind}`);
  if (state.layer) parts.push(`layer=${state.layer}`);
  const heads = chosenHeads();
  if (heads.length < headCount()) parts.push(`heads=${heads.join(",") || "none"}`);
  if (state.view !== "lines") parts.push(`view=${state.view}`);
  if (state.pinned) parts.push(`${state.pinned.side === "queries" ? "query" : "key"}=${state.pinned.index}`);
  if (state.cell) parts.push(`cell=${state.cell.q},${state.cell.k}`);
  if (state.search) parts.push(`search=${encodeURIComponent(state.search.toWellFormed?.() ?? state.search)}`);
  return parts.join("&");
}

/** The state from an address; what doesn't fit this page is left out. */
function restore(text) {
  const given = new URLSearchParams(text);
  const number = (value, n) => (/^\d{1,9}$/.test(value ?? "") && Number(value) < n ? Number(value) : null);
  state.kind = number(given.get("kind"), data.kinds.length) ?? 0;
  state.layer = number(given.get("layer"), data.kinds[state.kind].heads.length) ?? 0;
  const heads = given.get("heads");
  state.heads = new Set((heads ?? "").split(",").map((head) => number(head, headCount())).filter((head) => head !== null));
  if (!state.heads.size && heads !== "none") state.heads = allHeads();
  state.view = VIEWS.includes(given.get("view")) ? given.get("view") : "lines";
  const [query, key] = ["queries", "keys"].map((side, i) => number(given.get(["query", "key"][i]), tokensOf(side).length));
  state.pinned = query !== null ? { side: "queries", index: query } : key !== null ? { side: "keys", index: key } : null;
  const [q, k] = (given.get("cell") ?? "").split(",");
  state.cell = { q: number(q, tokensOf("queries").length), k: number(k, tokensOf("keys").length) };
  if (state.cell.q === null || state.cell.k === null) state.cell = null;
  state.search = given.get("search") ?? "";
}

let remembering = 0;
function remember() {
  clearTimeout(remembering); // browsers refuse many changes of the address in a short time
  remembering = setTimeout(() => {
    if (location.protocol === "about:") return; // a notebook's frame has no address to share
    const now = fragment();
    if (now !== location.hash.slice(1)) history.replaceState(null, "", now ? `#${now}` : location.pathname + location.search);
  }, 200);
}

// Colours: one for each head, the same in every layer; and a ramp for matrices.

const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const MOST_HEADS = Math.max(...data.kinds.flatMap((kind) => kind.heads));
function headColour(head) {
  const hue = (250 + (360 * head) / Math.max(MOST_HEADS, 3)) % 360;
  const light = (dark.matches ? 0.7 : 0.47) + (head % 2 ? 0.06 : 0); // legible under the button's number
  return `oklch(${light} 0.15 ${hue})`;
}

const RAMPS = {
  light: [[255, 255, 255], [205, 224, 247], [113, 166, 226], [37, 88, 190], [13, 27, 84]],
  dark: [[25, 29, 38], [27, 62, 120], [44, 124, 190], [116, 201, 220], [250, 252, 220]],
};

/** 256 colours from 0 to the largest weight, as 32-bit pixels. */
function ramp() {
  const stops = RAMPS[dark.matches ? "dark" : "light"];
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const place = Math.sqrt(i / 255) * (stops.length - 1); // the root, as most weights are small
    const below = Math.min(Math.floor(place), stops.length - 2);
    for (let c = 0; c < 3; c++)
      bytes[4 * i + c] = stops[below][c] + (stops[below + 1][c] - stops[below][c]) * (place - below);
    bytes[4 * i + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}

/** A canvas with a pixel for each weight, from 0 to largest. */
function pixels(weights, rows, columns, largest) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  const colours = ramp(), into = new Uint32Array(image.data.buffer);
  const factor = largest > 0 ? 255 / largest : 0;
  for (let i = 0; i < into.length; i++) into[i] = colours[Math.min(255, Math.round(weights[i] * factor))];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** A canvas of so many CSS pixels, sharp on this screen; its context, cleared. */
function prepare(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
