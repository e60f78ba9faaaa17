// Direct logit attribution as a map of heads and MLPs, and the attention pattern of the chosen head.
"use strict";
(() => {
  const { make, makeChoice, quoteToken, formatNumber } = mesascope;
  const { subject, state, views, find, addView, change, known, colour, listOff } = explorer;
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

  function drawAttribution(answer) {
    const controls = find("attribution-controls");
    controls.replaceChildren();
    markHeads();
    if (!answer) { [...heads, ...mlps].forEach(cell => { cell.style.background = ""; cell.title = ""; }); readout.textContent = ""; return; }
    const listed = answer.top.some(one => one.id === answer.token.id) ? answer.top : [answer.token, ...answer.top];
    controls.append(makeChoice({ name: "token", options: listed.map(one => quoteToken(one.text)), slider: false, selected: listed.findIndex(one => one.id === answer.token.id) },
      k => change({ token: listed[k].id })));
    const flat = answer.head.flat(), most = Math.max(...[...flat, ...answer.mlp].map(Math.abs), 1e-12);
    controls.append(mesascope.colourScale({ colours: subject.diverging, ends: mesascope.formatEnds(-most, most, false), units: "logit" }));
    const paint = (cell, name, value) => {
      cell.style.backgroundColor = colour(subject.diverging, .5 + value / most / 2);
      cell.title = `${name}: ${formatNumber(value)} logit`;
      cell.setAttribute("aria-label", cell.title);
    };
    heads.forEach((cell, k) => paint(cell, `layer ${Math.floor(k / subject.heads)}, head ${k % subject.heads}`, flat[k]));
    mlps.forEach((cell, layer) => paint(cell, `MLP of layer ${layer}`, answer.mlp[layer]));
    const sum = list => formatNumber(list.reduce((total, value) => total + value, 0));
    readout.textContent = `${quoteToken(answer.token.text)}: logit ${formatNumber(answer.total)} = embedding ${formatNumber(answer.embedding)} + heads ${sum(flat)} + MLPs ${sum(answer.mlp)} + biases ${sum([...answer.attention_bias, answer.readout_bias])}`;
  }

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
    box.hidden = !answer || !views.tokens.answer;
    if (box.hidden) return;
    const size = answer.pattern.length, top = answer.pattern.reduce((most, row) => Math.max(most, ...row), 0), labels = views.tokens.answer.tokens.map(one => one.text);
    if (labels.length !== size) return;
    const { colours } = mesascope.themed({ colours: subject.colours });
    const image = make("canvas", { width: size, height: size }), context = image.getContext("2d"), pixels = context.createImageData(size, size);
    answer.pattern.flat().forEach((weight, k) => pixels.data.set([...mesascope.mixColours(colours, weight / top), 255], 4 * k));
    context.putImageData(pixels, 0, 0);
    controls.append(mesascope.colourScale({ colours: subject.colours, ends: mesascope.formatEnds(0, top, false), units: "" }));
    square.canvas.setAttribute("aria-label", `Attention of layer ${state.layer}, head ${state.head}: rows are queries, columns are keys`);
    square.show({ queries: size, keys: size, labels: { query: labels, key: labels }, image, describe: (query, key) => formatNumber(answer.pattern[query][key]) });
    if (state.colour === "attention") views.tokens.refresh();
  }

  explorer.toggleHead = (layer, head) => {
    const pair = `${layer}.${head}`, off = state.off.split(",").filter(Boolean);
    change({ off: (off.includes(pair) ? off.filter(one => one !== pair) : [...off, pair]).join(",") });
  };

  addView("attribution", () => known() ? { prompt: explorer.readPrompt(state.prompt), position: state.position, ...state.token >= 0 ? { token: state.token } : {} } : null, drawAttribution);
  addView("pattern", () => known() ? { prompt: explorer.readPrompt(state.prompt), layer: state.layer, head: state.head } : null, drawPattern);
})();
