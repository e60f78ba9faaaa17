// The text, coloured by one of many quantities at one depth; beside it all depths of the whole sequence in small.
"use strict";
mesascope.reader = (host, data) => {
  const { make } = mesascope;
  const at = { quantity: data.selected, layer: 0, sequence: 0, place: -1, alone: false };
  const places = data.tokens[0].length, size = data.tokens.length * places;
  const controls = make("div", { class: "controls" }), depth = make("span", { class: "choice" }), scale = make("span");
  const identity = make("p", { class: "identity" }), about = make("p", { class: "about" });
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const whole = make("canvas", { class: "whole", role: "img" }), mark = make("i"), strip = make("div", { class: "strip-of-text" }, whole, mark);
  const text = make("div", { class: "text", tabindex: 0, role: "group", "aria-label": "The text, token by token" });
  const codes = [], one = () => data.quantities[at.quantity];
  const bytes = () => codes[at.quantity] ??= mesascope.bytes(one().bytes);
  const code = (layer, place) => bytes()[layer * size + at.sequence * places + place];
  let ramp = [], spans = [];

  function between(what) {
    if (!at.alone) return [what.low, what.high];
    const seen = new Uint32Array(256);
    for (let k = 0; k < size; k++) seen[bytes()[at.layer * size + k]]++;
    seen[0] = 0;
    what.levels.forEach((level, k) => { if (what.log && level <= 0) seen[k + 1] = 0; });
    const all = seen.reduce((sum, count) => sum + count, 0);
    if (!all) return [what.low, what.high];
    const quantile = share => { let sum = 0; return what.levels[seen.findIndex(count => (sum += count) > share * (all - 1)) - 1]; };
    const [low, high] = [quantile(.01), quantile(.99)];
    const reach = Math.max(high - what.center, what.center - low);
    const ends = what.center === null ? [low, high] : [what.center - reach, what.center + reach];
    return ends[1] > ends[0] ? ends : [what.low, what.high];
  }

  function colour(what) {
    const [least, most] = between(what), turned = v => what.log ? Math.log10(v) : v, [low, high] = [turned(least), turned(most)];
    ramp = [null, ...what.levels.map(level => mesascope.mix(what.colours, what.log && level <= 0 ? 0 : (turned(level) - low) / (high - low)))];
    const [first, , last] = mesascope.ends(least, most, what.log), beyond = what.beyond || at.alone;
    scale.replaceChildren(mesascope.colours({ colours: what.colours, ends: beyond ? [`≤ ${first}`, "", `≥ ${last}`] : [first, "", last], units: what.units }));
  }

  function paint() {
    colour(one());
    spans.forEach((span, place) => {
      const found = ramp[code(at.layer, place)];
      span.style.background = found ? `rgb(${found.join(",")})` : "none";
      span.classList.toggle("unmeasured", !found);
    });
    overview();
    tell();
  }

  function overview() {
    const what = one(), layers = Math.max(1, what.layers.length), columns = Math.min(places, whole.parentElement.clientWidth || 600);
    whole.width = columns; whole.height = layers;
    whole.style.height = `${Math.max(14, Math.min(4 * layers, 110))}px`;
    const context = whole.getContext("2d"), pixels = context.createImageData(columns, layers);
    const apart = [-1, ...what.levels.map(level => what.center === null ? level : Math.abs(level - what.center))];
    const best = new Uint8Array(columns);
    for (let layer = 0; layer < layers; layer++) {
      best.fill(0);
      for (let place = 0; place < places; place++) {
        const column = Math.floor(place * columns / places), found = code(layer, place);
        if (found && (!best[column] || apart[found] > apart[best[column]])) best[column] = found;
      }
      best.forEach((found, column) => pixels.data.set([...ramp[found] || [255, 255, 255], 255], 4 * (layer * columns + column)));
    }
    context.putImageData(pixels, 0, 0);
    whole.setAttribute("aria-label", `${one().name} over the whole sequence${layers > 1 ? ", the first depth on top" : ""}`);
  }

  function tell() {
    text.querySelector(".here")?.classList.remove("here");
    spans[at.place]?.classList.add("here");
    mark.hidden = at.place < 0;
    if (at.place < 0) { readout.textContent = "Point at a token, or tap it, for its number."; return; }
    mark.style.left = `${(at.place + .5) / places * 100}%`;
    const found = code(at.layer, at.place), what = one();
    const value = found ? `${what.exact ? "" : "≈ "}${mesascope.number(what.levels[found - 1])} ${what.units}` : "not measured at this token";
    readout.textContent = `position ${at.place.toLocaleString("en")} ${mesascope.quoted(data.tokens[at.sequence][at.place])}: ${value}`;
  }

  function go(place, seen) {
    at.place = Math.max(0, Math.min(places - 1, place));
    tell();
    if (seen) text.scrollTop += spans[at.place].getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 2;
  }

  function write() {
    spans = data.tokens[at.sequence].map((token, place) => {
      const span = make("span", { class: "t" }, mesascope.visible(token).replaceAll("\n", "↵\n") || "∅");
      span.dataset.place = place;
      return span;
    });
    text.replaceChildren(...spans);
    text.scrollTop = 0;
    at.place = -1;
    paint();
  }

  function chosen() {
    const what = one(), before = depth.querySelector("output")?.textContent;
    at.layer = Math.max(0, what.layers.includes(before) ? what.layers.indexOf(before) : what.layers.length - 1);
    depth.replaceChildren();
    if (what.layers.length > 1) depth.append(mesascope.choice({ name: "layer", options: what.layers, slider: true, selected: at.layer },
      layer => { at.layer = layer; paint(); }));
    range.hidden = what.layers.length < 2;
    about.textContent = [what.about, what.log ? "Colours are logarithmic." : "", what.beyond ? "Beyond the ends of the scale, where at most one number in fifty lies, the colour stays the same." : "",
      what.missing ? "Tokens without colour were not measured." : ""].filter(Boolean).join(" ");
    mesascope.identity(identity, what.tautology);
  }

  controls.append(mesascope.quantities("colour by", data.quantities, at.quantity, k => { at.quantity = k; chosen(); paint(); }));
  if (data.sequences.length > 1) controls.append(mesascope.choice({ name: "sequence", options: data.sequences, slider: data.sequences.length > 6, selected: 0 },
    k => { at.sequence = k; write(); }));
  const range = mesascope.choice({ name: "colours over", options: ["all layers", "this layer"], slider: false, selected: 0 }, k => { at.alone = !!k; paint(); });
  controls.append(depth, range, scale);
  host.append(controls, identity, about, strip, readout, text);
  const pointed = event => { const span = event.target.closest(".t"); if (span) go(+span.dataset.place); };
  text.addEventListener("pointerover", pointed);
  text.addEventListener("click", pointed);
  text.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    go(at.place + move, true);
  });
  whole.addEventListener("click", event => {
    const box = whole.getBoundingClientRect(), layers = one().layers.length;
    const range = depth.querySelector("input");
    if (range) {
      range.value = Math.min(layers - 1, Math.floor((event.clientY - box.top) / box.height * layers));
      range.dispatchEvent(new Event("input"));
    }
    go(Math.floor((event.clientX - box.left) / box.width * places), true);
  });
  chosen();
  write();
};
