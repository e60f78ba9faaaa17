// The head explorer: a map of all heads in the colours of one quantity; a head that is opened shows all that is known of it.
"use strict";
mesascope.explorer = (host, data) => {
  const { make } = mesascope;
  const heads = data.heads.length, open = { head: 0, example: 0 };
  const controls = make("div", { class: "controls" }), scale = make("span"), identity = make("p", { class: "identity" }), about = make("p", { class: "about" });
  const map = make("div", { class: "headmap", role: "group", "aria-label": "Heads: rows are layers, columns are heads" });
  map.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(15px, 1fr))`;
  const title = make("h4", { "aria-live": "polite" }), roles = make("p", { class: "roles" }), readout = make("p", { class: "readout" });
  const large = make("div", { class: "large" }), scores = make("div"), tops = make("div");
  const opened = make("div", { class: "opened" }, title, roles, large), known = make("div", { class: "known" }, scores, ...data.tops ? [tops] : []);
  const sides = make("div", { class: "sides" }, make("div", { class: "mapbox" }, map), opened);
  (data.patterns ? sides : opened).append(known);
  host.append(controls, identity, about, sides);

  const narrow = matchMedia("(max-width: 759px)"), name = k => `layer ${data.layers[Math.floor(k / heads)]}, head ${data.heads[k % heads]}`;
  const buttons = data.layers.flatMap(() => data.heads).map((_, k) => {
    const button = make("button", { type: "button", tabindex: -1, "aria-label": name(k) });
    button.addEventListener("click", () => { show(k); if (narrow.matches) title.scrollIntoView(); });
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

  const told = (what, value) => value === null ? "–" : `${mesascope.number(value)}${what.units ? ` ${what.units}` : ""}`;
  function paint(k) {
    const what = data.quantities[k], turned = v => what.log ? Math.log10(v) : v;
    const [low, high] = [turned(what.low), turned(what.high)];
    buttons.forEach((button, place) => {
      const value = what.values[place], known = value !== null && (!what.log || value > 0);
      button.style.background = known ? `rgb(${mesascope.mix(what.colours, (turned(value) - low) / (high - low)).join(",")})` : "";
      button.classList.toggle("unknown", value === null);
      button.title = `${name(place)}: ${told(what, value)}`;
      button.setAttribute("aria-label", button.title);
    });
    scale.replaceChildren(mesascope.colours({ colours: what.colours, ends: mesascope.ends(what.low, what.high, what.log), units: what.units }));
    about.textContent = `${what.about}${what.log ? " Colours are logarithmic." : ""}`;
    mesascope.identity(identity, what.tautology);
  }

  function table(caption, titles, rows) {
    const line = (cells, tag) => make("tr", {}, ...cells.map(cell => {
      const element = make(tag);
      element.append(cell);
      return element;
    }));
    return make("table", {}, make("caption", {}, caption), make("thead", {}, line(titles, "th")), make("tbody", {}, ...rows.map(row => line(row, "td"))));
  }

  function control(one, k) {
    const dot = make("i", { class: "dot", "aria-hidden": "true" });
    dot.style.background = one.colour;
    const between = one.draws > 1 ? ` [${mesascope.number(one.low[k], 2)}, ${mesascope.number(one.high[k], 2)}]` : "";
    return make("span", { class: "control" }, dot, `${one.name}: ${mesascope.number(one.mean[k])}${between}`);
  }

  function score(what, k) {
    const nulls = what.controls.filter(one => one.mean[k] !== null);
    return [what.name, told(what, what.values[k]), make("span", {}, ...nulls.length ? nulls.map(one => control(one, k)) : ["–"])];
  }

  function raised(k) {
    const { token, logit, at, units } = data.tops, tokens = data.patterns?.labels[0].query || [];
    const where = place => place === null ? "–" : place in tokens ? `${place} ${mesascope.isolated(tokens[place])}` : String(place);
    const rows = token[k].map((word, rank) => [make("code", {}, mesascope.quoted(word)),
      ...logit ? [logit[k][rank] === null ? "–" : mesascope.number(logit[k][rank])] : [], ...at ? [where(at[k][rank])] : []]);
    return table("Raises most, by its direct contribution", ["token", ...logit ? [units ? `by (${units})` : "by"] : [], ...at ? ["at position"] : []], rows);
  }

  const pattern = data.patterns && attention(data.patterns);
  function attention(found) {
    const [, layers, , queries, keys] = found.shape, each = found.causal ? queries * (queries + 1) / 2 : queries * keys;
    const bytes = mesascope.bytes(found.bytes), square = mesascope.square(large, readout);
    const legend = mesascope.colours({ colours: found.colours, ends: ["0", "", String(+found.top.toPrecision(3))], units: "" });
    large.append(square.canvas, readout, make("p", { class: "quiet" }, legend, ` ${found.left_out}`));
    const start = () => (open.example * layers * heads + open.head) * each;
    const code = (query, key) => found.causal ? key > query ? 1 : bytes[start() + query * (query + 1) / 2 + key] : bytes[start() + query * keys + key];
    const weight = byte => byte ? found.top * ((byte - 1) / 254) ** 2 : null;
    const ramp = Array.from({ length: 256 }, (_, byte) => byte ? mesascope.mix(found.colours, weight(byte) / found.top) : [255, 255, 255]);
    return () => {
      const image = make("canvas", { width: keys, height: queries }), context = image.getContext("2d"), pixels = context.createImageData(keys, queries);
      for (let k = 0; k < queries * keys; k++) pixels.data.set([...ramp[code(Math.floor(k / keys), k % keys)], 255], 4 * k);
      context.putImageData(pixels, 0, 0);
      const say = (query, key) => found.causal && key > query ? "later, not seen" : code(query, key) ? `≈ ${mesascope.number(weight(code(query, key)), 2)}` : "not recorded";
      square.canvas.setAttribute("aria-label", `Where ${name(open.head)} looks: rows look, columns are looked at`);
      square.show({ queries, keys, labels: found.labels[open.example], image, say });
    };
  }

  function show(k) {
    open.head = k;
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === k));
    buttons.forEach((button, place) => { button.tabIndex = place === k ? 0 : -1; });
    title.textContent = `Layer ${data.layers[Math.floor(k / heads)]}, head ${data.heads[k % heads]}`;
    roles.textContent = data.roles[k] ? `Role: ${mesascope.visible(data.roles[k])}` : "";
    if (pattern) pattern();
    if (data.quantities.length) scores.replaceChildren(table("Scores, and what they are where there is nothing to find", ["quantity", "here", "controls"], data.quantities.map(what => score(what, k))));
    if (data.tops) tops.replaceChildren(raised(k));
  }

  if (data.quantities.length) {
    controls.append(mesascope.quantities("colour by", data.quantities, data.selected, paint), scale);
    paint(data.selected);
  }
  if (data.patterns && data.patterns.labels.length > 1) controls.append(mesascope.choice({ name: "example",
    options: data.patterns.labels.map((_, k) => String(k)), slider: false, selected: 0 }, k => { open.example = k; pattern(); }));
  const first = data.quantities.length ? data.quantities[data.selected].values : [0];
  show(first.reduce((best, value, k) => value !== null && (first[best] === null || value > first[best]) ? k : best, 0));
};
