// Head explorer: a map of all heads coloured by one quantity, and all results of the selected head.
"use strict";
mesascope.drawHeadExplorer = (host, data) => {
  const { make } = mesascope;
  const heads = data.heads.length, selected = { head: 0, example: 0 };
  const controls = make("div", { class: "controls" }), scale = make("span"), identity = make("p", { class: "identity" }), about = make("p", { class: "description" });
  const map = make("div", { class: "headmap", role: "group", "aria-label": "Heads: rows are layers, columns are heads" });
  map.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(15px, 1fr))`;
  const title = make("h3", { "aria-live": "polite" }), roles = make("p", { class: "roles" }), readout = make("p", { class: "readout" });
  const large = make("div", { class: "large" }), scores = make("div"), tops = make("div");
  const opened = make("div", { class: "opened" }, title, roles, large), known = make("div", { class: "known" }, scores, ...data.tops ? [tops] : []);
  const sides = make("div", { class: "sides" }, make("div", { class: "mapbox" }, map), opened);
  (data.patterns ? sides : opened).append(known);
  host.append(controls, identity, about, sides);

  const narrow = matchMedia("(max-width: 759px)"), name = k => `layer ${data.layers[Math.floor(k / heads)]}, head ${data.heads[k % heads]}`;
  const buttons = data.layers.flatMap(() => data.heads).map((_, k) => {
    const button = make("button", { type: "button", tabindex: -1, "aria-label": name(k) });
    button.addEventListener("click", () => { showHead(k); if (narrow.matches) title.scrollIntoView(); });
    button.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -heads, ArrowDown: heads }[event.key];
      if (!move) return;
      event.preventDefault();
      const next = k + move;
      const leaves = Math.abs(move) === 1 && Math.floor(next / heads) !== Math.floor(k / heads);
      if (next >= 0 && next < buttons.length && !leaves) buttons[next].focus();
    });
    button.addEventListener("focus", () => buttons.forEach(other => { other.tabIndex = other === button ? 0 : -1; }));
    return button;
  });
  map.append(make("span"), ...data.heads.map(head => make("span", {}, head)));
  data.layers.forEach((layer, k) => map.append(make("span", {}, layer), ...buttons.slice(k * heads, (k + 1) * heads)));

  const formatValue = (quantity, value) => value === null ? "–" : `${mesascope.formatNumber(value)}${quantity.units ? ` ${quantity.units}` : ""}`;
  function paintMap(k) {
    const quantity = data.quantities[k], scaled = v => quantity.log ? Math.log10(v) : v;
    const { colours } = mesascope.themed({ colours: quantity.colours });
    const [low, high] = [scaled(quantity.low), scaled(quantity.high)];
    buttons.forEach((button, index) => {
      const value = quantity.values[index], known = value !== null && (!quantity.log || value > 0);
      button.style.background = known ? `rgb(${mesascope.mixColours(colours, (scaled(value) - low) / (high - low)).join(",")})` : "";
      button.classList.toggle("unknown", value === null);
      button.title = `${name(index)}: ${formatValue(quantity, value)}`;
      button.setAttribute("aria-label", button.title);
    });
    scale.replaceChildren(mesascope.colourScale({ colours: quantity.colours, ends: mesascope.formatEnds(quantity.low, quantity.high, quantity.log), units: quantity.units }));
    about.textContent = `${quantity.description}${quantity.log ? " Logarithmic colour scale." : ""}`;
    mesascope.showTautology(identity, quantity.tautology);
  }

  function table(caption, titles, rows) {
    const line = (cells, tag) => make("tr", {}, ...cells.map(cell => {
      const element = make(tag, tag === "th" ? { scope: "col" } : {});
      element.append(cell);
      return element;
    }));
    return make("table", {}, make("caption", {}, caption), make("thead", {}, line(titles, "th")), make("tbody", {}, ...rows.map(row => line(row, "td"))));
  }

  function controlItem(control, k) {
    const dot = make("i", { class: "dot", "aria-hidden": "true" });
    mesascope.paint(dot, "background", control.colour);
    const range = control.draws > 1 ? ` [${mesascope.formatNumber(control.low[k], 2)}, ${mesascope.formatNumber(control.high[k], 2)}]` : "";
    return make("span", { class: "control" }, dot, `${control.name}: ${mesascope.formatNumber(control.mean[k])}${range}`);
  }

  function scoreRow(quantity, k) {
    const controls = quantity.controls.filter(control => control.mean[k] !== null);
    return [quantity.name, formatValue(quantity, quantity.values[k]), make("span", {}, ...controls.length ? controls.map(control => controlItem(control, k)) : ["–"])];
  }

  function topTokens(k) {
    const { token, logit, position, units } = data.tops, tokens = data.patterns?.labels[0].query || [];
    const formatPosition = index => index === null ? "–" : index in tokens ? `${index} ${mesascope.isolateText(tokens[index])}` : String(index);
    const rows = token[k].map((word, rank) => [make("code", {}, mesascope.quoteToken(word)),
      ...logit ? [logit[k][rank] === null ? "–" : mesascope.formatNumber(logit[k][rank])] : [], ...position ? [formatPosition(position[k][rank])] : []]);
    return table("Tokens with the largest direct contribution", ["token", ...logit ? [units ? `contribution (${units})` : "contribution"] : [], ...position ? ["position"] : []], rows);
  }

  const pattern = data.patterns && attention(data.patterns);
  function attention(patterns) {
    const [, layers, , queries, keys] = patterns.shape, cells = patterns.causal ? queries * (queries + 1) / 2 : queries * keys;
    const bytes = mesascope.decodeBytes(patterns.bytes), square = mesascope.attentionMap(large, readout);
    const legend = mesascope.colourScale({ colours: patterns.colours, ends: ["0", "", String(+patterns.top.toPrecision(3))], units: "" });
    large.append(square.canvas, readout, make("p", { class: "quiet" }, legend, ` ${patterns.left_out}`));
    const start = () => (selected.example * layers * heads + selected.head) * cells;
    const code = (query, key) => patterns.causal ? key > query ? 1 : bytes[start() + query * (query + 1) / 2 + key] : bytes[start() + query * keys + key];
    const weight = byte => byte ? patterns.top * ((byte - 1) / 254) ** 2 : null;
    return () => {
      const { colours } = mesascope.themed({ colours: patterns.colours });
      const ramp = Array.from({ length: 256 }, (_, byte) => byte ? mesascope.mixColours(colours, weight(byte) / patterns.top) : mesascope.blank());
      const image = make("canvas", { width: keys, height: queries }), context = image.getContext("2d"), pixels = context.createImageData(keys, queries);
      for (let k = 0; k < queries * keys; k++) pixels.data.set([...ramp[code(Math.floor(k / keys), k % keys)], 255], 4 * k);
      context.putImageData(pixels, 0, 0);
      const describe = (query, key) => patterns.causal && key > query ? "masked (causal)" : code(query, key) ? `≈ ${mesascope.formatNumber(weight(code(query, key)), 2)}` : "not recorded";
      square.canvas.setAttribute("aria-label", `Attention of ${name(selected.head)}: rows are queries, columns are keys`);
      square.show({ queries, keys, labels: patterns.labels[selected.example], image, describe });
    };
  }

  function showHead(k) {
    selected.head = k;
    buttons.forEach((button, index) => {
      button.setAttribute("aria-pressed", index === k);
      button.tabIndex = index === k ? 0 : -1;
    });
    title.textContent = `Layer ${data.layers[Math.floor(k / heads)]}, head ${data.heads[k % heads]}`;
    roles.textContent = data.roles[k] ? `Role: ${mesascope.makeVisible(data.roles[k])}` : "";
    if (pattern) pattern();
    if (data.quantities.length) scores.replaceChildren(table("Scores and controls", ["quantity", "this head", "controls"], data.quantities.map(quantity => scoreRow(quantity, k))));
    if (data.tops) tops.replaceChildren(topTokens(k));
  }

  if (data.quantities.length) {
    let shown = data.selected;
    controls.append(mesascope.quantityChoice("colour by", data.quantities, shown, k => paintMap(shown = k)), scale);
    paintMap(shown);
    mesascope.onTheme(() => paintMap(shown));
  }
  if (data.patterns && data.patterns.labels.length > 1) controls.append(mesascope.makeChoice({ name: "example",
    options: data.patterns.labels.map((_, k) => String(k)), slider: false, selected: 0 }, k => { selected.example = k; pattern(); }));
  if (pattern) mesascope.onTheme(pattern);
  const first = data.quantities.length ? data.quantities[data.selected].values : [0];
  showHead(first.reduce((best, value, k) => value !== null && (first[best] === null || value > first[best]) ? k : best, 0));
};
