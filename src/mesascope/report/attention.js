// The attention browser and the coloured text.
"use strict";
mesascope.mix = (colours, share) => {
  const at = Math.max(0, Math.min(1, share)) * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
  const part = k => [1, 3, 5].map(i => parseInt(colours[k].slice(i, i + 2), 16));
  const [a, b] = [part(low), part(low + 1)];
  return a.map((value, k) => Math.round(value + (b[k] - value) * (at - low)));
};

mesascope.attention = (host, data) => {
  const { make, choice } = mesascope;
  const [, layers, heads, , queries, keys] = data.shape;
  const at = { seed: 0, layer: 0, head: 0, batch: 0 };
  const start = (layer, head) => ((((at.seed * layers + layer) * heads + head) * data.shape[3]) + at.batch) * queries * keys;
  const share = value => value === null ? null : data.signed ? (value / 1000 + 1) / 2 : value / 1000;
  const ramp = Array.from({ length: 256 }, (_, k) => mesascope.mix(data.colours, k / 255));
  const image = (layer, head) => {
    const canvas = make("canvas", { width: keys, height: queries }), context = canvas.getContext("2d");
    const pixels = context.createImageData(keys, queries), first = start(layer, head);
    for (let k = 0; k < queries * keys; k++) {
      const value = share(data.values[first + k]);
      const colour = value === null ? [255, 255, 255] : ramp[Math.round(value * 255)];
      pixels.data.set([...colour, 255], 4 * k);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  };

  const controls = make("div", { class: "controls" });
  const pick = (dim, name) => {
    if (data.names[dim].length < 2) return;
    controls.append(choice({ name, options: data.names[dim], slider: false, selected: 0 }, k => { at[dim] = k; all(); }));
  };
  pick("seed", "seed");
  pick("batch", "example");
  const ends = data.signed ? [-data.top, 0, data.top] : [0, data.top / 2, data.top];
  controls.append(mesascope.colours({ colours: data.colours, ends: ends.map(v => String(+v.toPrecision(3)).replace("-", "−")), units: data.units }));
  const thumbs = make("div", { class: "heads", role: "group", "aria-label": "Heads: rows are layers, columns are heads" });
  thumbs.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(14px, 1fr))`;
  const title = make("h4"), readout = make("p", { class: "readout" }), large = make("canvas", { tabindex: 0, role: "img" });
  const right = make("div", { class: "large" }, title, large, readout);
  host.append(controls, make("div", { class: "browser" }, thumbs, right));

  const buttons = [];
  thumbs.append(make("span", {}, ""), ...data.names.head.map(name => make("span", {}, name)));
  for (let layer = 0; layer < layers; layer++) {
    thumbs.append(make("span", {}, data.names.layer[layer]));
    for (let head = 0; head < heads; head++) {
      const name = `layer ${data.names.layer[layer]}, head ${data.names.head[head]}`;
      const button = make("button", { type: "button", "aria-label": name, title: name });
      button.addEventListener("click", () => { at.layer = layer; at.head = head; show(); });
      button.addEventListener("keydown", keyed);
      buttons.push(button);
      thumbs.append(button);
    }
  }

  let frame = {};
  function show() {
    buttons.forEach((button, k) => {
      const on = k === at.layer * heads + at.head;
      button.setAttribute("aria-pressed", on);
      button.tabIndex = on ? 0 : -1;
    });
    title.textContent = `Layer ${data.names.layer[at.layer]}, head ${data.names.head[at.head]}`;
    large.setAttribute("aria-label", `${host.dataset.label} ${title.textContent}`);
    paint();
  }

  function paint() {
    const labels = data.labels[at.batch], context = large.getContext("2d"), ratio = devicePixelRatio || 1;
    const width = Math.max(240, Math.min(right.clientWidth || 520, 600));
    const short = text => text.length > 10 ? text.slice(0, 9) + "…" : text;
    context.font = "12px sans-serif";
    const room = Math.ceil(Math.max(...[...labels.query, ...labels.key].map(t => context.measureText(short(t)).width))) + 10;
    const cell = (width - room - 22) / keys, tall = Math.min(cell, 480 / queries);
    frame = { left: room + 18, top: 4, cell, tall };
    const height = tall * queries + room + 26;
    large.width = width * ratio; large.height = height * ratio;
    large.style.width = `${width}px`; large.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(image(at.layer, at.head), frame.left, frame.top, cell * keys, tall * queries);
    context.strokeStyle = "#b9b5ab";
    context.strokeRect(frame.left - .5, frame.top - .5, cell * keys + 1, tall * queries + 1);
    context.font = "12px sans-serif"; context.fillStyle = "#565d66"; context.textBaseline = "middle";
    const every = size => Math.max(1, Math.ceil(13 / size));
    context.textAlign = "right";
    for (let k = 0; k < queries; k += every(tall)) context.fillText(short(labels.query[k]), frame.left - 5, frame.top + (k + .5) * tall);
    for (let k = 0; k < keys; k += every(cell)) {
      context.save();
      context.translate(frame.left + (k + .5) * cell, frame.top + tall * queries + 5);
      context.rotate(-Math.PI / 2);
      context.fillText(short(labels.key[k]), 0, 0);
      context.restore();
    }
    context.textAlign = "center"; context.fillStyle = "#22272e";
    context.fillText("key (looked at)", frame.left + cell * keys / 2, height - 8);
    context.save();
    context.translate(8, frame.top + tall * queries / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("query (looks)", 0, 0);
    context.restore();
    readout.textContent = "Point at a cell for its number.";
  }

  function all() {
    buttons.forEach((button, k) => button.replaceChildren(image(Math.floor(k / heads), k % heads)));
    show();
  }

  function keyed(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    at.layer = Math.max(0, Math.min(layers - 1, at.layer + move[0]));
    at.head = Math.max(0, Math.min(heads - 1, at.head + move[1]));
    show();
    const button = buttons[at.layer * heads + at.head];
    if (event.currentTarget === large) button.scrollIntoView({ block: "nearest" });
    else button.focus();
  }

  large.addEventListener("keydown", keyed);
  large.addEventListener("pointermove", event => {
    const box = large.getBoundingClientRect(), labels = data.labels[at.batch];
    const key = Math.floor((event.clientX - box.left - frame.left) / frame.cell);
    const query = Math.floor((event.clientY - box.top - frame.top) / frame.tall);
    if (key < 0 || key >= keys || query < 0 || query >= queries) return;
    const value = data.values[start(at.layer, at.head) + query * keys + key];
    const number = value === null ? "no number" : String(+(value / 1000 * data.top).toPrecision(3)).replace("-", "−");
    readout.textContent = `position ${query} “${labels.query[query]}” → position ${key} “${labels.key[key]}”: ${number} ${data.units}`;
  });
  addEventListener("resize", paint);
  all();
};

mesascope.tokens = (host, data) => {
  const spans = [...host.querySelectorAll(".t")], readout = host.querySelector(".readout"), range = host.querySelector("input");
  let layer = data.values.length - 1;
  const share = value => (((data.log ? Math.log10(value) : value) - data.low) / (data.high - data.low));
  const flat = () => data.values[layer].flat();
  const paint = () => flat().forEach((value, k) => {
    const known = value !== null && (!data.log || value > 0);
    spans[k].style.background = known ? `rgb(${mesascope.mix(data.colours, share(value)).join(",")})` : "none";
  });
  host.prepend(mesascope.colours({ colours: data.colours, ends: [data.ends[0], "", data.ends[1]], units: data.units }));
  spans.forEach((span, k) => span.addEventListener("pointerenter", () => {
    const value = flat()[k];
    readout.textContent = `“${data.rows.flat()[k]}”: ${value === null ? "no number" : value} ${data.units}`;
  }));
  if (range) range.addEventListener("input", () => {
    layer = +range.value;
    host.querySelector("output").textContent = data.options[layer];
    paint();
  });
  paint();
};
