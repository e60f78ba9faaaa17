// A chart of numbers by position: lines with points, an axis of positions, and a mark at the clicked one.
"use strict";
explorer.drawChart = (host, series, label) => {
  const { make, formatNumber } = mesascope, { state, change } = explorer;
  const draw = (parent, tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const width = Math.max(260, Math.min(host.clientWidth || 640, 860)), height = 230, left = 58, right = 10, top = 8, bottom = 34;
  const count = Math.max(...series.map(one => one.values.length)), numbers = series.flatMap(one => one.values).filter(value => value !== null);
  let [low, high] = [Math.min(...numbers, 0), Math.max(...numbers, 0)];
  if (high === low) high = low + 1;
  const x = k => left + (count < 2 ? .5 : k / (count - 1)) * (width - left - right), y = value => top + (high - value) / (high - low) * (height - top - bottom);
  const svg = draw(host, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label });
  const power = 10 ** Math.floor(Math.log10((high - low) / 4)), step = power * [1, 2, 5, 10].find(factor => factor * power >= (high - low) / 5);
  for (let k = Math.ceil(low / step); k <= Math.floor(high / step); k++) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(k * step), y2: y(k * step) });
    draw(svg, "text", { x: left - 6, y: y(k * step) + 4, "text-anchor": "end" }, formatNumber(k * step));
  }
  const every = Math.max(1, Math.ceil(count * 26 / (width - left - right)));
  for (let k = 0; k < count; k += every) draw(svg, "text", { x: x(k), y: height - bottom + 16, "text-anchor": "middle" }, String(k));
  draw(svg, "text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "position");
  draw(svg, "line", { class: "here", x1: x(state.position), x2: x(state.position), y1: top, y2: height - bottom });
  for (const one of series) {
    const known = one.values.map((value, k) => [k, value]).filter(([, value]) => value !== null);
    const path = known.map(([k, value], index) => `${index && known[index - 1][0] === k - 1 ? "L" : "M"}${x(k).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    draw(svg, "path", { class: `line ${one.kind}`, d: path || "M0 0" });
    for (const [k, value] of known) draw(svg, "circle", { class: `point ${one.kind}`, cx: x(k).toFixed(1), cy: y(value).toFixed(1), r: 2.6 });
  }
  svg.addEventListener("click", event => {
    const across = (event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width * width;
    change({ position: Math.max(0, Math.min(count - 1, Math.round((across - left) / (width - left - right) * (count - 1)))) });
  });
  const legend = make("p", { class: "legend" }, ...series.map(one => make("span", {}, make("i", { class: `dash ${one.kind}`, "aria-hidden": "true" }), one.name)));
  host.append(legend);
};
