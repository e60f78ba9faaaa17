// The map of heads and MLPs, coloured by direct attribution, and the attention pattern of the chosen head.
"use strict";
(() => {
  const { make, makeChoice, formatNumber } = mesascope;
  const { subject, state, find, addView, change, texts, known, colour, listOff } = explorer;
  const map = find("headmap"), readout = find("attribution-readout");
  map.style.gridTemplateColumns = `max-content repeat(${subject.heads}, minmax(15px, 1fr)) minmax(24px, 1fr)`;
  const heads = [], mlps = [];
  map.append(make("span"), ...Array.from({ length: subject.heads }, (_, head) => make("span", {}, String(head))), make("span", {}, "MLP"));
  for (let layer = 0; layer < subject.layers; layer++) {
    map.append(make("span", {}, String(layer)));
    for (let head = 0; head < subject.heads; head++) {
      const button = make("button", { type: "button", "aria-label": `layer ${layer}, head ${head}` });
      button.disabled = !subject.attention_layers.includes(layer);
      button.addEventListener("click", () => change({ layer, head }));
      button.addEventListener("keydown", moveFocus);
      heads.push(button);
      map.append(button);
    }
    const cell = make("button", { type: "button", class: "mlp", tabindex: -1, "aria-label": `MLP of layer ${layer}` });
    cell.addEventListener("click", () => { readout.textContent = cell.title; });
    mlps.push(cell);
    map.append(cell);
  }

  function moveFocus(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -subject.heads, ArrowDown: subject.heads }[event.key];
    if (!move) return;
    event.preventDefault();
    heads[heads.indexOf(event.currentTarget) + move]?.focus();
  }

  function markHeads() {
    const off = new Set(listOff().map(([layer, head]) => layer * subject.heads + head));
    heads.forEach((button, k) => {
      const chosen = k === state.layer * subject.heads + state.head;
      button.setAttribute("aria-pressed", chosen);
      button.tabIndex = chosen ? 0 : -1;
      button.classList.toggle("off", off.has(k));
    });
  }

  // Colour the map by contributions `head` (layer, head) and `mlp` (layer); returns the colour scale. Without an answer, clear it.
  explorer.drawHeadmap = (answer, units) => {
    markHeads();
    if (!answer) { [...heads, ...mlps].forEach(cell => { cell.style.background = ""; cell.title = ""; }); readout.textContent = ""; return null; }
    const flat = answer.head.flat(), most = Math.max(...[...flat, ...answer.mlp].map(Math.abs), 1e-12);
    const paint = (cell, name, value) => {
      cell.style.backgroundColor = colour(subject.diverging, .5 + value / most / 2);
      cell.title = `${name}: ${formatNumber(value)} ${units}`.trim();
      cell.setAttribute("aria-label", cell.title);
    };
    heads.forEach((cell, k) => paint(cell, `layer ${Math.floor(k / subject.heads)}, head ${k % subject.heads}`, flat[k]));
    mlps.forEach((cell, layer) => paint(cell, `MLP of layer ${layer}`, answer.mlp[layer]));
    return mesascope.colourScale({ colours: subject.diverging, ends: mesascope.formatEnds(-most, most, false), units });
  };

  const box = find("pattern-map"), said = make("p", { class: "readout" }), square = mesascope.attentionMap(box, said);
  box.append(square.canvas, said);

  function drawPattern(answer) {
    const controls = find("pattern-controls"), layers = subject.attention_layers;
    const isOff = listOff().some(([layer, head]) => layer === state.layer && head === state.head);
    const toggle = make("button", { type: "button", id: "toggle", "aria-pressed": isOff }, isOff ? "Switch this head on" : "Switch this head off");
    toggle.addEventListener("click", () => explorer.toggleHead(state.layer, state.head));
    controls.replaceChildren(
      makeChoice({ name: "layer", options: layers.map(String), slider: false, selected: Math.max(0, layers.indexOf(state.layer)) }, k => change({ layer: layers[k] })),
      makeChoice({ name: "head", options: Array.from({ length: subject.heads }, (_, k) => String(k)), slider: false, selected: state.head }, head => change({ head })), toggle);
    markHeads();
    const labels = texts();
    box.hidden = !answer || answer.pattern.length !== labels.length;
    if (box.hidden) return;
    const size = labels.length, weights = answer.pattern.flat(), signed = weights.some(weight => weight < 0);  // of linear attention
    const top = weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0) || 1, low = signed ? -top : 0;
    const { colours } = mesascope.themed({ colours: signed ? subject.diverging : subject.colours });
    const image = make("canvas", { width: size, height: size }), context = image.getContext("2d"), pixels = context.createImageData(size, size);
    weights.forEach((weight, k) => pixels.data.set([...mesascope.mixColours(colours, (weight - low) / (top - low)), 255], 4 * k));
    context.putImageData(pixels, 0, 0);
    controls.append(mesascope.colourScale({ colours: signed ? subject.diverging : subject.colours, ends: mesascope.formatEnds(low, top, false), units: "" }));
    square.canvas.setAttribute("aria-label", `Attention of layer ${state.layer}, head ${state.head}: rows are queries, columns are keys`);
    square.show({ queries: size, keys: size, labels: { query: labels, key: labels }, image, describe: (query, key) => formatNumber(answer.pattern[query][key]) });
    if (state.colour === "attention") explorer.redrawInput();
  }

  explorer.toggleHead = (layer, head) => {
    const pair = `${layer}.${head}`, off = state.off.split(",").filter(Boolean);
    change({ off: (off.includes(pair) ? off.filter(one => one !== pair) : [...off, pair]).join(",") });
  };

  addView("pattern", () => known() ? { prompt: explorer.readPrompt(state.prompt), layer: state.layer, head: state.head } : null, drawPattern);
})();
