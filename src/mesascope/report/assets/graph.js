// Graph of a circuit: components as boxes, edges as curves, a slider for their number, and a table of edges.
"use strict";
const MAX_SHOWN = 100;  // edges that are shown at first
mesascope.drawGraph = (host, data) => {
  const { make } = mesascope, space = "http://www.w3.org/2000/svg", { nodes, edges } = data, total = edges.score.length;
  const width = 860, step = 30, top = 16, height = (data.rows - 1) * step + 2 * top, margin = 70;
  const x = at => margin + at * (width - margin - 20), y = row => height - top - row * step;
  const part = (tag, attributes, ...children) => {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const largest = Math.max(...edges.score.map(Math.abs)), number = value => value === null ? "–" : mesascope.formatNumber(value);
  const unit = data.units === "1" ? "" : ` ${data.units}`;
  const describe = k => `${edges.name[k]}: score ${number(edges.score[k])}${unit}`;
  const svg = part("svg", { class: "circuit", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Graph of the circuit; the table below lists its edges" });
  for (let layer = 0; layer < (data.rows - 2) / 2; layer++) svg.append(part("text", { x: 4, y: y(2 * layer + 1.5) + 4 }, `layer ${layer}`));
  const curves = part("g", {}), boxes = part("g", {});
  svg.append(curves, boxes);
  const paths = edges.score.map((score, k) => {
    const from = nodes[edges.sender[k]], [toX, toRow] = edges.receiver[k];
    const [x1, y1, x2, end] = [x(from.x), y(from.row) - 6, x(toX), y(toRow) + 6];
    // heads that share a key-value head: the edge ends in a bracket below all of them
    const group = edges.readers[k].map(index => x(nodes[index].x)), stem = group.length > 1 ? 4 : 0, y2 = end + stem, bend = Math.max(10, (y1 - y2) / 2);
    const bracket = stem ? `M${Math.min(...group)} ${end}v${stem}H${Math.max(...group)}v${-stem}` : "";
    const passes = Math.abs(x1 - x2) < 1 && toRow - from.row > 1;  // components between them would cover the edge
    const side = passes ? (k % 2 ? 1 : -1) * Math.min(140, 20 + 6 * (toRow - from.row)) : 0;
    const path = part("path", { d: `M${x1} ${y1}C${x1 + side} ${y1 - bend} ${x2 + side} ${y2 + bend} ${x2} ${y2}${bracket}`, class: score < 0 ? "lowers" : "raises",
      "stroke-width": .6 + 5 * Math.abs(score) / largest }, part("title", {}, describe(k)));
    path.addEventListener("click", () => select(k));
    return path;
  });
  curves.append(...[...paths].reverse());
  const marks = nodes.map(node => part("rect", { x: x(node.x) - (node.label.includes("head") ? 7 : 22), y: y(node.row) - 6, width: node.label.includes("head") ? 14 : 44,
    height: 12, rx: 3 }, part("title", {}, node.label)));
  boxes.append(...marks);
  const names = nodes.map(node => node.label.includes("head") ? part("text", { x: x(node.x), y: y(node.row) + 3.5, "text-anchor": "middle" }, node.name.split("H")[1])
    : part("text", { x: x(node.x), y: y(node.row) + 3.5, "text-anchor": "middle" }, node.name.includes("MLP") ? "MLP" : node.name === "output" ? "output" : "embed"));
  names.forEach((name, k) => { name.setAttribute("class", "name"); boxes.append(name); marks[k].dataset.index = k; });

  const counts = [...new Set([1, 2, 3, 5, 10, 20, 50, 100, 200, 500, data.size, total].filter(count => count <= total))].sort((a, b) => a - b);
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const heads = ["edge", `score${data.units === "1" ? "" : ` (${data.units})`}`, "95 % interval", "measured effect", "in resampled circuits"];
  const body = make("tbody"), rows = edges.score.map((score, k) => {
    const cells = [number(score), edges.low ? `${number(edges.low[k])} to ${number(edges.high[k])}` : "–", number(edges.effect?.[k] ?? null),
      edges.inclusion ? `${Math.round(100 * edges.inclusion[k])} %` : "–"];
    const button = make("button", { type: "button" }, edges.name[k]);
    button.addEventListener("click", () => select(k));
    return make("tr", {}, make("th", { scope: "row" }, button), ...cells.map(cell => make("td", {}, cell)));
  });
  const table = make("table", { class: "numbers" }, make("thead", {}, make("tr", {}, ...heads.map(name => make("th", { scope: "col" }, name)))), body);
  function select(k) {
    paths.forEach((path, index) => path.classList.toggle("chosen", index === k));
    rows.forEach((row, index) => row.classList.toggle("chosen", index === k));
    if (k < 0) return readout.replaceChildren();
    const interval = edges.low ? `, 95 % interval ${number(edges.low[k])} to ${number(edges.high[k])}` : "";
    const effect = edges.effect && edges.effect[k] !== null ? `, measured effect ${number(edges.effect[k])}` : "";
    readout.textContent = `${describe(k)}${interval}${effect}${edges.inclusion ? `, in ${Math.round(100 * edges.inclusion[k])} % of resampled circuits` : ""}`;
  }
  function show(index) {
    const count = counts[index], used = new Set([...edges.sender.slice(0, count), ...edges.readers.slice(0, count).flat()]);
    paths.forEach((path, k) => { path.style.display = k < count ? "" : "none"; });
    marks.forEach((mark, k) => mark.classList.toggle("used", used.has(k)));
    names.forEach((name, k) => { name.style.display = used.has(k) || !nodes[k].label.includes("head") ? "" : "none"; });
    body.replaceChildren(...rows.slice(0, count));
    if (rows.slice(count).some(row => row.classList.contains("chosen"))) select(-1);  // its curve is hidden
    output.textContent = `${count} (|score| ≥ ${number(Math.abs(edges.score[count - 1]))}${unit})`;
  }
  const output = make("output"), slider = make("input", { type: "range", min: 0, max: counts.length - 1, value: counts.filter(count => count <= Math.min(data.size, MAX_SHOWN)).length - 1 });
  slider.addEventListener("input", () => show(+slider.value));
  const key = make("span", { class: "key" }, make("span", {}, make("i", { class: "lowers" }), `${data.ablated_by} lowers the metric`), make("span", {}, make("i", { class: "raises" }), "raises it"));
  host.append(make("div", { class: "controls" }, make("label", { class: "choice" }, "edges ", slider, output), key), svg, readout, make("div", { class: "wide edges" }, table));
  show(+slider.value);
  mesascope.offerCsv(table, host.closest("[id]").id);
};
