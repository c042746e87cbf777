// The third view: a picture of every head of every layer. A layer is unpacked when it comes into sight.

const SIDE = 112; // pixels of a picture
const thumbnails = byId("thumbnails");
let watcher = null;

function fillThumbnails() {
  watcher?.disconnect();
  watcher = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      watcher.unobserve(entry.target);
      drawThumbnails(entry.target, state.kind, Number(entry.target.dataset.layer));
    }),
    { root: thumbnails, rootMargin: "100px" },
  );
  const numbers = element("div", "", { id: "numbers", ariaHidden: "true" }); // of the heads
  numbers.append(...["", ...Array(Math.max(...data.kinds[state.kind].heads)).keys()].map((head) => element("span", head)));
  thumbnails.replaceChildren(
    numbers,
    ...data.kinds[state.kind].heads.map((heads, layer) => {
      const row = document.createElement("div");
      row.className = "layer";
      row.dataset.layer = layer;
      row.setAttribute("role", "group");
      row.setAttribute("aria-label", `Layer ${layer}`);
      row.append(element("span", layer));
      for (let head = 0; head < heads; head++) {
        const button = document.createElement("button"), canvas = document.createElement("canvas");
        canvas.width = canvas.height = SIDE;
        button.append(canvas);
        button.dataset.head = head;
        button.setAttribute("aria-label", `layer ${layer}, head ${head}`);
        button.title = `layer ${layer}, head ${head}`;
        button.addEventListener("click", () => {
          state.layer = layer;
          state.heads = new Set([head]);
          showView("lines");
        });
        const enlarge = () => {
          byId("details").replaceChildren(element("h2", button.title), copyOf(canvas), element("p", "Choose it to see it alone."));
        };
        button.addEventListener("pointerenter", enlarge);
        button.addEventListener("focus", enlarge);
        row.append(button);
      }
      if (!heads) row.append("no heads");
      watcher.observe(row);
      return row;
    }),
  );
}

async function drawThumbnails(row, kind, number) {
  const layer = await layerOf(kind, number);
  for (const button of row.querySelectorAll("button")) {
    const weights = meanOf(layer, [Number(button.dataset.head)]);
    const shown = largestOfBlocks(weights, layer.t, layer.s, SIDE, SIDE);
    const largest = shown.weights.reduce((a, b) => Math.max(a, b), 0);
    const context = button.firstChild.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(pixels(shown.weights, shown.rows, shown.columns, largest), 0, 0, SIDE, SIDE);
  }
  row.dataset.drawn = "true";
}

function copyOf(canvas) {
  const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

function markThumbnails() {
  for (const row of thumbnails.querySelectorAll(".layer"))
    for (const button of row.querySelectorAll("button"))
      button.setAttribute("aria-pressed", Number(row.dataset.layer) === state.layer && state.heads.has(Number(button.dataset.head)));
}
