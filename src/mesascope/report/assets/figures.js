// Draws the figures of the page from the JSON beside them. Foreign text reaches the page as text, never as markup.
"use strict";
const mesascope = (() => {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function swatch(one) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const add = (tag, attributes) => {
      const part = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
      svg.append(part);
    };
    const dash = { dot: "2 3", dash: "6 4", longdash: "9 4", dashdot: "6 3 2 3" }[one.dash] || "";
    svg.setAttribute("width", 26); svg.setAttribute("height", 12); svg.setAttribute("aria-hidden", "true");
    if (one.kind === "bar") add("rect", { x: 4, y: 1, width: 18, height: 10, fill: "#7fa8cc" });
    else if (one.kind === "ring") add("circle", { cx: 13, cy: 6, r: 4, fill: "none", stroke: one.colour, "stroke-width": 1.5 });
    else if (one.kind === "diamond") add("path", { d: "M13 1L18 6L13 11L8 6Z", fill: one.colour });
    else if (one.kind === "tick") add("path", { d: "M13 0V12", stroke: one.colour, "stroke-width": 2.5 });
    else {
      if (one.kind === "band") add("rect", { x: 0, y: 1, width: 26, height: 10, fill: one.colour, opacity: .25 });
      add("path", { d: "M0 6H26", stroke: one.colour, "stroke-width": 2.4, "stroke-dasharray": dash });
    }
    return svg;
  }

  function legend(data, plots) {
    const box = make("div", { class: "legend", role: "group", "aria-label": "Curves: click to hide or show" });
    for (const one of data.legend) {
      const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(one), one.name);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", on);
        if (one.each) plots.forEach((plot, k) => { if (one.each[k].length) Plotly.restyle(plot, { visible: on }, one.each[k]); });
        else for (const plot of data.shared ? plots : plots.slice(0, 1)) Plotly.restyle(plot, { visible: on }, one.traces);
      });
      box.append(button);
    }
    return box;
  }

  function colours(scale) {
    const bar = make("i", { "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${scale.colours.join(",")})`;
    const [low, , high] = scale.ends;
    return make("span", { class: "colours" }, low, bar, scale.units ? `${high} ${scale.units}` : high);
  }

  function choice(one, change) {
    const label = make("label", { class: "choice" }, one.name);
    if (!one.slider) {
      const select = make("select", {}, ...one.options.map((name, k) => make("option", { value: k }, name)));
      select.value = one.selected;
      select.addEventListener("change", () => change(+select.value));
      label.append(select);
      return label;
    }
    const output = make("output", {}, one.options[one.selected]);
    const range = make("input", { type: "range", min: 0, max: one.options.length - 1, value: one.selected });
    range.addEventListener("input", () => { output.textContent = one.options[+range.value]; change(+range.value); });
    label.append(range, output);
    return label;
  }

  function marked(data, index, plot) {
    const { palette, names, codes, used } = data.marks, kind = index % names.length, code = codes[used[index]];
    const marker = { ...data.plots[plot].data[0].marker, color: code.map(one => palette[one % palette.length]) };
    return { ...data.variants[Math.floor(index / names.length)][plot], marker, customdata: code.map(one => names[kind][one]) };
  }

  function chosen(data, at, plot) {
    if (!data.variants) return {};
    const index = (data.choices || []).reduce((sum, one, k) => sum * one.options.length + at[k], 0);
    if (data.marks) return marked(data, index, plot);
    const cells = data.variants[index][plot];
    if (!data.plots[plot].log || cells.text) return cells;
    return { ...cells, text: cells.z.map(row => row.map(v => v === null ? "" : String(Number((10 ** v).toPrecision(3))))) };
  }

  function logarithmic(plots) {
    const button = make("button", { type: "button", "aria-pressed": "true" }, "steps: logarithmic");
    button.addEventListener("click", () => {
      const log = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", log);
      button.textContent = log ? "steps: logarithmic" : "steps: linear";
      for (const plot of plots) Plotly.relayout(plot, { "xaxis.type": log ? "log" : "linear",
        "xaxis.tickmode": log ? "array" : "auto", "xaxis.autorange": true });
    });
    return button;
  }

  function thinned(axis, count, room) {
    let free = -Infinity;
    const kept = axis.tickvals.map((value, k) => {
      const half = 4 * axis.ticktext[k].length + 4, at = value / Math.max(1, count - 1) * room;
      if (at - half < free) return false;
      free = at + half;
      return true;
    });
    return { ...axis, tickangle: 0, ticklabeloverflow: "allow", tickvals: axis.tickvals.filter((_, k) => kept[k]), ticktext: axis.ticktext.filter((_, k) => kept[k]) };
  }

  function clipped(axis, most) {
    if (!axis.ticktext) return axis;
    const short = text => {
      const signs = text.match(/&[^;]+;|./gsu) || [];
      return signs.length > most ? signs.slice(0, most - 1).join("") + "…" : text;
    };
    return { ...axis, ticktext: axis.ticktext.map(short) };
  }

  function drawPlot(spec, cells, element) {
    const layout = { ...spec.layout, height: spec.height, dragmode: coarse ? false : "zoom" };
    layout.yaxis = clipped(layout.yaxis, element.clientWidth < 300 ? 12 : element.clientWidth < 450 ? 18 : spec.wide ? 44 : 26);
    if (spec.thin) layout.xaxis = thinned(clipped(layout.xaxis, element.clientWidth < 450 ? 12 : 26), spec.thin, element.clientWidth - 90);
    const traces = spec.data.map(trace => ({ ...trace, ...cells }));
    if (spec.labels) traces[0].customdata = spec.labels[0].map(down => spec.labels[1].map(across => [down, across]));
    return Plotly.newPlot(element, traces, layout, config);
  }

  function figure(host, data) {
    const at = (data.choices || []).map(one => one.selected);
    const plots = [], controls = make("div", { class: "controls" });
    const grid = make("div", { class: "plots" });
    if (data.plots.length > 1) grid.style.gridTemplateColumns = `repeat(auto-fit, minmax(min(100%, ${data.least || 270}px), 1fr))`;
    const redraw = () => plots.forEach((plot, k) => {
      const cells = chosen(data, at, k);
      Plotly.restyle(plot, Object.fromEntries(Object.entries(cells).map(([name, value]) => [name, [value]])), [0]);
    });
    (data.choices || []).forEach((one, k) => {
      if (one.options.length > 1) controls.append(choice(one, value => { at[k] = value; redraw(); }));
    });
    if (data.scale) controls.append(colours(data.scale));
    if (data.toggle) controls.append(logarithmic(plots));
    host.append(controls);
    if (data.legend && data.legend.length) host.append(legend(data, plots));
    host.append(grid);
    data.plots.forEach((spec, k) => {
      const element = make("div", { class: "plot", role: "img", "aria-label": `${spec.title} ${host.dataset.label}` });
      const cell = make("div", spec.wide ? { class: "wide" } : {});
      if (spec.title) cell.append(make("h4", {}, spec.title));
      cell.append(element);
      grid.append(cell);
      plots.push(element);
    });
    plots.forEach((element, k) => drawPlot(data.plots[k], chosen(data, at, k), element));
  }

  return { make, choice, colours, figure };
})();
