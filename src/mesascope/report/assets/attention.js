// Attention browser, and text coloured by a quantity.
"use strict";
mesascope.drawAttention = (host, data) => {
  const { make, makeChoice } = mesascope;
  const [, layers, heads, , queries, keys] = data.shape;
  const selected = { seed: 0, layer: 0, head: 0, batch: 0 };
  const start = (layer, head) => ((((selected.seed * layers + layer) * heads + head) * data.shape[3]) + selected.batch) * queries * keys;
  const fraction = value => value === null ? null : data.signed ? (value / 1000 + 1) / 2 : value / 1000;
  let ramp;
  const image = (layer, head) => {
    const canvas = make("canvas", { width: keys, height: queries }), context = canvas.getContext("2d");
    const pixels = context.createImageData(keys, queries), first = start(layer, head);
    for (let k = 0; k < queries * keys; k++) {
      const value = fraction(data.values[first + k]);
      const colour = value === null ? mesascope.blank() : ramp[Math.round(value * 255)];
      pixels.data.set([...colour, 255], 4 * k);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  };

  const controls = make("div", { class: "controls" });
  const addChoice = (dim, name) => {
    if (data.names[dim].length < 2) return;
    controls.append(makeChoice({ name, options: data.names[dim], slider: false, selected: 0 }, k => { selected[dim] = k; showAll(); }));
  };
  addChoice("seed", "seed");
  addChoice("batch", "example");
  const ends = data.signed ? [-data.top, 0, data.top] : [0, data.top / 2, data.top];
  controls.append(mesascope.colourScale({ colours: data.colours, ends: ends.map(v => String(+v.toPrecision(3)).replace("-", "−")), units: data.units }));
  const thumbs = make("div", { class: "heads", role: "group", "aria-label": "Heads: rows are layers, columns are heads" });
  thumbs.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(14px, 1fr))`;
  const title = make("h4"), readout = make("p", { class: "readout" }), right = make("div", { class: "large" }, title);
  const square = mesascope.attentionMap(right, readout), large = square.canvas;
  right.append(large, readout);
  host.append(controls, make("div", { class: "browser" }, thumbs, right));

  const buttons = [];
  thumbs.append(make("span", {}, ""), ...data.names.head.map(name => make("span", {}, name)));
  for (let layer = 0; layer < layers; layer++) {
    thumbs.append(make("span", {}, data.names.layer[layer]));
    for (let head = 0; head < heads; head++) {
      const name = `layer ${data.names.layer[layer]}, head ${data.names.head[head]}`;
      const button = make("button", { type: "button", "aria-label": name, title: name });
      button.addEventListener("click", () => { selected.layer = layer; selected.head = head; showHead(); });
      button.addEventListener("keydown", moveSelection);
      buttons.push(button);
      thumbs.append(button);
    }
  }

  function showHead() {
    buttons.forEach((button, k) => {
      const on = k === selected.layer * heads + selected.head;
      button.setAttribute("aria-pressed", on);
      button.tabIndex = on ? 0 : -1;
    });
    title.textContent = `Layer ${data.names.layer[selected.layer]}, head ${data.names.head[selected.head]}`;
    large.setAttribute("aria-label", `${host.dataset.label} ${title.textContent}`);
    const describe = (query, key) => {
      const value = data.values[start(selected.layer, selected.head) + query * keys + key];
      const number = value === null ? "missing" : String(+(value / 1000 * data.top).toPrecision(3)).replace("-", "−");
      return `${number} ${data.units}`;
    };
    square.show({ queries, keys, labels: data.labels[selected.batch], image: image(selected.layer, selected.head), describe });
  }

  function showAll() {
    const colours = mesascope.themed({ colours: data.colours }).colours;
    ramp = Array.from({ length: 256 }, (_, k) => mesascope.mixColours(colours, k / 255));
    buttons.forEach((button, k) => button.replaceChildren(image(Math.floor(k / heads), k % heads)));
    showHead();
  }

  function moveSelection(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    selected.layer = Math.max(0, Math.min(layers - 1, selected.layer + move[0]));
    selected.head = Math.max(0, Math.min(heads - 1, selected.head + move[1]));
    showHead();
    const button = buttons[selected.layer * heads + selected.head];
    if (event.currentTarget === large) button.scrollIntoView({ block: "nearest" });
    else button.focus();
  }

  large.addEventListener("keydown", moveSelection);
  showAll();
  mesascope.onTheme(showAll);
};

mesascope.drawTokens = (host, data) => {
  const spans = [...host.querySelectorAll(".t")], readout = host.querySelector(".readout"), range = host.querySelector("input");
  let layer = data.values.length - 1;
  const fraction = value => (((data.log ? Math.log10(value) : value) - data.low) / (data.high - data.low));
  const flat = () => data.values[layer].flat();
  const paint = () => {
    const { colours } = mesascope.themed({ colours: data.colours });
    flat().forEach((value, k) => {
      const known = value !== null && (!data.log || value > 0);
      spans[k].style.background = known ? `rgb(${mesascope.mixColours(colours, fraction(value)).join(",")})` : "none";
    });
  };
  host.prepend(mesascope.colourScale({ colours: data.colours, ends: [data.ends[0], "", data.ends[1]], units: data.units }));
  spans.forEach((span, k) => span.addEventListener("pointerenter", () => {
    const value = flat()[k];
    readout.textContent = `“${data.rows.flat()[k]}”: ${value === null ? "missing" : value} ${data.units}`;
  }));
  if (range) range.addEventListener("input", () => {
    layer = +range.value;
    host.querySelector("output").textContent = data.options[layer];
    paint();
  });
  paint();
  mesascope.onTheme(paint);
};
