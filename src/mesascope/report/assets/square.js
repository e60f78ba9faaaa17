// What several panels share: colours, bytes, numbers, and one attention pattern drawn large.
"use strict";
mesascope.mix = (colours, share) => {
  const at = Math.max(0, Math.min(1, share)) * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
  const part = k => [1, 3, 5].map(i => parseInt(colours[k].slice(i, i + 2), 16));
  const [a, b] = [part(low), part(low + 1)];
  return a.map((value, k) => Math.round(value + (b[k] - value) * (at - low)));
};

mesascope.bytes = text => Uint8Array.from(atob(text), sign => sign.charCodeAt(0));

mesascope.number = (value, digits = 3) => {
  if (value === null || !Number.isFinite(value)) return "no number";
  const size = Math.abs(value), short = Number(value.toPrecision(digits));
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) {
    const [mantissa, exponent] = short.toExponential().split("e");
    return `${mantissa}\u00a0×\u00a010${exponent.replace("+", "").replace(/[-0-9]/g, sign => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)])}`.replace("-", "−");
  }
  return short.toLocaleString("en", { maximumFractionDigits: 10 }).replace("-", "−");
};

mesascope.ends = (low, high, log) => [low, , high].map(value => mesascope.number(!log && Math.abs(value) < 1e-3 * (high - low) ? 0 : value));

// Signs that cannot be seen, or that turn other text round, are shown by a picture of themselves.
mesascope.visible = text => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, sign => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
  .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g, sign => `⟨${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
// Text from outside within a sentence: what is written from right to left turns nothing else round.
mesascope.isolated = text => `“\u2068${text}\u2069”`;
mesascope.quoted = text => mesascope.isolated(mesascope.visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

// A list of quantities to choose from, in groups by the file that they come from.
mesascope.quantities = (name, quantities, selected, change) => {
  const select = mesascope.make("select");
  let group = null;
  quantities.forEach((one, k) => {
    if (!group || group.label !== one.group) {
      group = mesascope.make("optgroup", { label: one.group });
      select.append(group);
    }
    group.append(mesascope.make("option", { value: k }, one.name));
  });
  select.value = selected;
  select.addEventListener("change", () => change(+select.value));
  return mesascope.make("label", { class: "choice" }, name, select);
};

mesascope.identity = (host, reason) => {
  host.replaceChildren(...reason ? [mesascope.make("strong", {}, "Cannot fail:"), ` ${reason}`] : []);
  host.hidden = !reason;
};

// One pattern: `show` takes queries, keys, labels, an image of one pixel for each cell, and what to say about a cell.
mesascope.square = (holder, readout) => {
  const canvas = mesascope.make("canvas", { tabindex: 0, role: "img" });
  let frame = {}, seen = null;
  const short = text => text.length > 10 ? text.slice(0, 9) + "…" : text;
  const paint = () => {
    if (!seen) return;
    const { queries, keys, labels, image } = seen, context = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    const width = Math.max(240, Math.min(holder.clientWidth || 520, 600));
    context.font = "12px sans-serif";
    const room = Math.ceil(Math.max(...[...labels.query, ...labels.key].map(t => context.measureText(short(t)).width))) + 10;
    const cell = (width - room - 22) / keys, tall = Math.min(cell, 480 / queries);
    frame = { left: room + 18, top: 4, cell, tall };
    const height = tall * queries + room + 26;
    canvas.width = width * ratio; canvas.height = height * ratio;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, frame.left, frame.top, cell * keys, tall * queries);
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
  };
  const point = event => {
    if (!seen) return;
    const box = canvas.getBoundingClientRect();
    const key = Math.floor((event.clientX - box.left - frame.left) / frame.cell);
    const query = Math.floor((event.clientY - box.top - frame.top) / frame.tall);
    if (key < 0 || key >= seen.keys || query < 0 || query >= seen.queries) return;
    const { query: down, key: across } = seen.labels;
    readout.textContent = `position ${query} ${mesascope.isolated(down[query])} → position ${key} ${mesascope.isolated(across[key])}: ${seen.say(query, key)}`;
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  addEventListener("resize", paint);
  return { canvas, show: what => { seen = what; paint(); } };
};
