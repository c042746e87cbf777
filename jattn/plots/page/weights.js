"use strict";
// The data: tokens, kinds of attention, and the weights of a layer, unpacked when they are wanted.

const byId = (id) => document.getElementById(id);

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text;
  return made;
}

const data = JSON.parse(byId("data").textContent);
const queryTokens = (kind) => data.tokens[data.kinds[kind].queries] ?? data.tokens[0];
const keyTokens = (kind) => data.tokens[data.kinds[kind].keys] ?? data.tokens[0];

// A layer is {heads, t, s, largest: Float32Array(heads * t), codes: Uint8Array(heads * t * s)}; a weight is its code
// times its row's largest weight, over 255.
const unpacked = new Map(); // of the last few layers, in the order of their use
const KEPT = 4;

function layerOf(kind, layer) {
  const name = `weights-${kind}-${layer}`;
  const promise = unpacked.get(name) ?? unpack(name, kind, layer);
  unpacked.delete(name);
  unpacked.set(name, promise);
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  return promise;
}

async function unpack(name, kind, layer) {
  const text = byId(name).textContent;
  const deflated = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const heads = data.kinds[kind].heads[layer];
  const t = queryTokens(kind).length, s = keyTokens(kind).length;
  const largest = new Float32Array(heads * t);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < largest.length; i++) largest[i] = view.getFloat32(4 * i, true);
  return { heads, t, s, largest, codes: bytes.subarray(4 * heads * t) };
}

const weightAt = (layer, head, q, k) =>
  (layer.codes[(head * layer.t + q) * layer.s + k] * layer.largest[head * layer.t + q]) / 255;

/** One head's weights of a query over the keys, or of a key over the queries. */
function weightsOf(layer, head, side, index) {
  const n = side === "queries" ? layer.s : layer.t;
  const weights = new Float32Array(n);
  for (let i = 0; i < n; i++)
    weights[i] = side === "queries" ? weightAt(layer, head, index, i) : weightAt(layer, head, i, index);
  return weights;
}

/** The mean over heads of all weights, t * s. */
function meanOf(layer, heads) {
  const { t, s, codes, largest } = layer;
  const mean = new Float32Array(t * s);
  for (const head of heads)
    for (let q = 0; q < t; q++) {
      const factor = largest[head * t + q] / 255 / heads.length;
      if (factor === 0) continue;
      const from = (head * t + q) * s;
      for (let k = 0; k < s; k++) mean[q * s + k] += codes[from + k] * factor;
    }
  return mean;
}

/** The largest weight of each block of so many rows and columns, so that a single bright one stays visible. */
function largestOfBlocks(weights, t, s, rows, columns) {
  if (rows >= t && columns >= s) return { weights, rows: t, columns: s };
  rows = Math.min(rows, t);
  columns = Math.min(columns, s);
  const reduced = new Float32Array(rows * columns);
  for (let q = 0; q < t; q++) {
    const to = Math.floor((q * rows) / t) * columns;
    for (let k = 0; k < s; k++) {
      const cell = to + Math.floor((k * columns) / s);
      if (weights[q * s + k] > reduced[cell]) reduced[cell] = weights[q * s + k];
    }
  }
  return { weights: reduced, rows, columns };
}
