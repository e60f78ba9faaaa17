// Token view: the text coloured by one quantity at one layer, and a strip with all layers of the whole sequence.
"use strict";
mesascope.drawTokenView = (host, data) => {
  const { make } = mesascope;
  const state = { quantity: data.selected, layer: 0, sequence: 0, position: -1, layerRange: false };
  const positions = data.tokens[0].length, size = data.tokens.length * positions;
  const controls = make("div", { class: "controls" }), depth = make("span", { class: "choice" }), scale = make("span");
  const identity = make("p", { class: "identity" }), about = make("p", { class: "description" });
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const whole = make("canvas", { class: "whole", role: "img" }), mark = make("i"), strip = make("div", { class: "strip-of-text" }, whole, mark);
  const text = make("div", { class: "text", tabindex: 0, role: "group", "aria-label": "The text, token by token" });
  const codes = [], current = () => data.quantities[state.quantity];
  const bytes = () => codes[state.quantity] ??= mesascope.decodeBytes(current().bytes);
  const code = (layer, position) => bytes()[layer * size + state.sequence * positions + position];
  let ramp = [], spans = [];

  function colourRange(quantity) {
    if (!state.layerRange) return [quantity.low, quantity.high];
    const counts = new Uint32Array(256);
    for (let k = 0; k < size; k++) counts[bytes()[state.layer * size + k]]++;
    counts[0] = 0;
    quantity.levels.forEach((level, k) => { if (quantity.log && level <= 0) counts[k + 1] = 0; });
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (!total) return [quantity.low, quantity.high];
    const quantile = fraction => { let sum = 0; return quantity.levels[counts.findIndex(count => (sum += count) > fraction * (total - 1)) - 1]; };
    const [low, high] = [quantile(.01), quantile(.99)];
    const reach = Math.max(high - quantity.center, quantity.center - low);
    const ends = quantity.center === null ? [low, high] : [quantity.center - reach, quantity.center + reach];
    return ends[1] > ends[0] ? ends : [quantity.low, quantity.high];
  }

  function updateColours(quantity) {
    const [least, most] = colourRange(quantity), scaled = v => quantity.log ? Math.log10(v) : v, [low, high] = [scaled(least), scaled(most)];
    const { colours } = mesascope.themed({ colours: quantity.colours });
    ramp = [null, ...quantity.levels.map(level => mesascope.mixColours(colours, quantity.log && level <= 0 ? 0 : (scaled(level) - low) / (high - low)))];
    const [first, , last] = mesascope.formatEnds(least, most, quantity.log), beyond = quantity.beyond || state.layerRange;
    scale.replaceChildren(mesascope.colourScale({ colours: quantity.colours, ends: beyond ? [`≤ ${first}`, "", `≥ ${last}`] : [first, "", last], units: quantity.units }));
  }

  function paintTokens() {
    updateColours(current());
    spans.forEach((span, position) => {
      const found = ramp[code(state.layer, position)];
      span.style.background = found ? `rgb(${found.join(",")})` : "none";
      span.classList.toggle("unmeasured", !found);
    });
    paintStrip();
    updateReadout();
  }

  function paintStrip() {
    const quantity = current(), layers = Math.max(1, quantity.layers.length), columns = Math.min(positions, whole.parentElement.clientWidth || 600);
    whole.width = columns; whole.height = layers;
    whole.style.height = `${Math.max(14, Math.min(4 * layers, 110))}px`;
    const context = whole.getContext("2d"), pixels = context.createImageData(columns, layers);
    const extremity = [-1, ...quantity.levels.map(level => quantity.center === null ? level : Math.abs(level - quantity.center))];
    const best = new Uint8Array(columns);
    for (let layer = 0; layer < layers; layer++) {
      best.fill(0);
      for (let position = 0; position < positions; position++) {
        const column = Math.floor(position * columns / positions), found = code(layer, position);
        if (found && (!best[column] || extremity[found] > extremity[best[column]])) best[column] = found;
      }
      best.forEach((found, column) => pixels.data.set([...ramp[found] || mesascope.blank(), 255], 4 * (layer * columns + column)));
    }
    context.putImageData(pixels, 0, 0);
    whole.setAttribute("aria-label", `${current().name} over the whole sequence${layers > 1 ? ", the first layer on top" : ""}`);
  }

  function updateReadout() {
    text.querySelector(".here")?.classList.remove("here");
    spans[state.position]?.classList.add("here");
    mark.hidden = state.position < 0;
    if (state.position < 0) { readout.textContent = "Hover over or tap a token for its value."; return; }
    mark.style.left = `${(state.position + .5) / positions * 100}%`;
    const found = code(state.layer, state.position), quantity = current();
    const value = found ? `${quantity.exact ? "" : "≈ "}${mesascope.formatNumber(quantity.levels[found - 1])} ${quantity.units}` : "not measured at this token";
    readout.textContent = `position ${state.position.toLocaleString("en")} ${mesascope.quoteToken(data.tokens[state.sequence][state.position])}: ${value}`;
  }

  function selectToken(position, scroll) {
    state.position = Math.max(0, Math.min(positions - 1, position));
    updateReadout();
    if (scroll) text.scrollTop += spans[state.position].getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 2;
  }

  function showSequence() {
    spans = data.tokens[state.sequence].map((token, position) => {
      const span = make("span", { class: "t" }, mesascope.makeVisible(token).replaceAll("\n", "↵\n") || "∅");
      span.dataset.position = position;
      return span;
    });
    text.replaceChildren(...spans);
    text.scrollTop = 0;
    state.position = -1;
    paintTokens();
  }

  function updateQuantity() {
    const quantity = current(), before = depth.querySelector("output")?.textContent;
    state.layer = Math.max(0, quantity.layers.includes(before) ? quantity.layers.indexOf(before) : quantity.layers.length - 1);
    depth.replaceChildren();
    if (quantity.layers.length > 1) depth.append(mesascope.makeChoice({ name: "layer", options: quantity.layers, slider: true, selected: state.layer },
      layer => { state.layer = layer; paintTokens(); }));
    range.hidden = quantity.layers.length < 2;
    about.textContent = [quantity.description, quantity.log ? "Logarithmic colour scale." : "", quantity.beyond ? "Colours are clipped at both ends of the scale; at most 2% of the values lie beyond." : "",
      quantity.missing ? "Tokens without colour were not measured." : ""].filter(Boolean).join(" ");
    mesascope.showTautology(identity, quantity.tautology);
  }

  controls.append(mesascope.quantityChoice("colour by", data.quantities, state.quantity, k => { state.quantity = k; updateQuantity(); paintTokens(); }));
  if (data.sequences.length > 1) controls.append(mesascope.makeChoice({ name: "sequence", options: data.sequences, slider: data.sequences.length > 6, selected: 0 },
    k => { state.sequence = k; showSequence(); }));
  const range = mesascope.makeChoice({ name: "colour range", options: ["all layers", "this layer"], slider: false, selected: 0 }, k => { state.layerRange = !!k; paintTokens(); });
  controls.append(depth, range, scale);
  host.append(controls, identity, about, strip, readout, text);
  const pointAtToken = event => { const span = event.target.closest(".t"); if (span) selectToken(+span.dataset.position); };
  text.addEventListener("pointerover", pointAtToken);
  text.addEventListener("click", pointAtToken);
  text.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    selectToken(state.position + move, true);
  });
  whole.addEventListener("click", event => {
    const box = whole.getBoundingClientRect(), layers = current().layers.length;
    const range = depth.querySelector("input");
    if (range) {
      range.value = Math.min(layers - 1, Math.floor((event.clientY - box.top) / box.height * layers));
      range.dispatchEvent(new Event("input"));
    }
    selectToken(Math.floor((event.clientX - box.left) / box.width * positions), true);
  });
  updateQuantity();
  showSequence();
  mesascope.onTheme(paintTokens);
};
