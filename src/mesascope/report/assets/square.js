// Helpers shared by several panels: colours, bytes, numbers, and a large attention map.
"use strict";
mesascope.mixColours = (colours, fraction) => {
  const at = Math.max(0, Math.min(1, fraction)) * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
  const part = k => [1, 3, 5].map(i => parseInt(colours[k].slice(i, i + 2), 16));
  const [a, b] = [part(low), part(low + 1)];
  return a.map((value, k) => Math.round(value + (b[k] - value) * (at - low)));
};

mesascope.decodeBytes = text => Uint8Array.from(atob(text), sign => sign.charCodeAt(0));

// Texts that the page stores compressed. Browsers that have light-dark(), as page.css needs, can unpack them.
mesascope.unpackText = text => {
  const packed = new Blob([mesascope.decodeBytes(text)]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
};

mesascope.formatNumber = (value, digits = 3) => {
  if (value === null || !Number.isFinite(value)) return "missing";
  const size = Math.abs(value), short = Number(value.toPrecision(digits));
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) {
    const [mantissa, exponent] = short.toExponential().split("e");
    return `${mantissa}\u00a0×\u00a010${exponent.replace("+", "").replace(/[-0-9]/g, sign => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)])}`.replace("-", "−");
  }
  return short.toLocaleString("en", { maximumFractionDigits: 10 }).replace("-", "−");
};

mesascope.formatEnds = (low, high, log) => [low, , high].map(value => mesascope.formatNumber(!log && Math.abs(value) < 1e-3 * (high - low) ? 0 : value));

// Replace characters that are invisible, or that change the direction of other text, by a visible symbol.
mesascope.makeVisible = text => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, sign => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
  .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g, sign => `⟨${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
// Isolate external text within a sentence, so that right-to-left text does not reorder the rest.
mesascope.isolateText = text => `“\u2068${text}\u2069”`;
mesascope.quoteToken = text => mesascope.isolateText(mesascope.makeVisible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

// A select element of quantities, grouped by file.
mesascope.quantityChoice = (name, quantities, selected, change) => {
  const select = mesascope.make("select");
  let group = null;
  quantities.forEach((quantity, k) => {
    if (!group || group.label !== quantity.group) {
      group = mesascope.make("optgroup", { label: quantity.group });
      select.append(group);
    }
    group.append(mesascope.make("option", { value: k }, quantity.name));
  });
  select.value = selected;
  select.addEventListener("change", () => change(+select.value));
  return mesascope.make("label", { class: "choice" }, name, select);
};

mesascope.showTautology = (host, reason) => {
  host.replaceChildren(...reason ? [mesascope.make("strong", {}, "Holds by construction:"), ` ${reason}`] : []);
  host.hidden = !reason;
};

// One attention pattern. `show` takes queries, keys, labels, an image with one pixel per cell, and `describe(query, key)`.
mesascope.attentionMap = (container, readout) => {
  const canvas = mesascope.make("canvas", { tabindex: 0, role: "img" });
  let frame = {}, pattern = null;
  const truncate = text => text.length > 10 ? text.slice(0, 9) + "…" : text;
  const paint = () => {
    if (!pattern) return;
    const { queries, keys, labels, image } = pattern, context = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    const width = Math.max(240, Math.min(container.clientWidth || 520, 600));
    context.font = "12px sans-serif";
    const labelWidth = Math.ceil(Math.max(...[...labels.query, ...labels.key].map(t => context.measureText(truncate(t)).width))) + 10;
    const cellWidth = (width - labelWidth - 22) / keys, cellHeight = Math.min(cellWidth, 480 / queries);
    frame = { left: labelWidth + 18, top: 4, cellWidth, cellHeight };
    const height = cellHeight * queries + labelWidth + 26;
    canvas.width = width * ratio; canvas.height = height * ratio;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, frame.left, frame.top, cellWidth * keys, cellHeight * queries);
    context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
    context.strokeRect(frame.left - .5, frame.top - .5, cellWidth * keys + 1, cellHeight * queries + 1);
    context.font = "12px sans-serif"; context.textBaseline = "middle";
    const every = size => Math.max(1, Math.ceil(13 / size));
    context.textAlign = "right";
    for (let k = 0; k < queries; k += every(cellHeight)) context.fillText(truncate(labels.query[k]), frame.left - 5, frame.top + (k + .5) * cellHeight);
    for (let k = 0; k < keys; k += every(cellWidth)) {
      context.save();
      context.translate(frame.left + (k + .5) * cellWidth, frame.top + cellHeight * queries + 5);
      context.rotate(-Math.PI / 2);
      context.fillText(truncate(labels.key[k]), 0, 0);
      context.restore();
    }
    context.textAlign = "center";
    context.fillText("key", frame.left + cellWidth * keys / 2, height - 8);
    context.save();
    context.translate(8, frame.top + cellHeight * queries / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("query", 0, 0);
    context.restore();
    readout.textContent = "Hover over or tap a cell for its value.";
  };
  const updateReadout = event => {
    if (!pattern) return;
    const box = canvas.getBoundingClientRect();
    const key = Math.floor((event.clientX - box.left - frame.left) / frame.cellWidth);
    const query = Math.floor((event.clientY - box.top - frame.top) / frame.cellHeight);
    if (key < 0 || key >= pattern.keys || query < 0 || query >= pattern.queries) return;
    const { query: down, key: across } = pattern.labels;
    readout.textContent = `position ${query} ${mesascope.isolateText(down[query])} → position ${key} ${mesascope.isolateText(across[key])}: ${pattern.describe(query, key)}`;
  };
  canvas.addEventListener("pointermove", updateReadout);
  canvas.addEventListener("pointerdown", updateReadout);
  addEventListener("resize", paint);
  return { canvas, show: next => { pattern = next; paint(); } };
};
