// Draw the figures of the page from their JSON data. External text is inserted as text, never as markup.
"use strict";
const mesascope = (() => {
  const BAR_COLOUR = "#6594c1";  // as in plotting/figure.py
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function swatch(entry) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const add = (tag, attributes) => {
      const part = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
      svg.append(part);
    };
    const dash = { dot: "2 3", dash: "6 4", longdash: "9 4", dashdot: "6 3 2 3" }[entry.dash] || "";
    mesascope.paint(svg, "color", entry.kind === "bar" ? BAR_COLOUR : entry.colour);
    svg.setAttribute("width", 26); svg.setAttribute("height", 12); svg.setAttribute("aria-hidden", "true");
    if (entry.kind === "bar") add("rect", { x: 4, y: 1, width: 18, height: 10, fill: "currentColor" });
    else if (entry.kind === "ring") add("circle", { cx: 13, cy: 6, r: 4, fill: "none", stroke: "currentColor", "stroke-width": 1.5 });
    else if (entry.kind === "diamond") add("path", { d: "M13 1L18 6L13 11L8 6Z", fill: "currentColor" });
    else if (entry.kind === "tick") add("path", { d: "M13 0V12", stroke: "currentColor", "stroke-width": 2.5 });
    else {
      if (entry.kind === "band") add("rect", { x: 0, y: 1, width: 26, height: 10, fill: "currentColor", opacity: .25 });
      add("path", { d: "M0 6H26", stroke: "currentColor", "stroke-width": 2.4, "stroke-dasharray": dash });
    }
    return svg;
  }

  function legend(data, plots) {
    const box = make("div", { class: "legend", role: "group", "aria-label": "Curves: click to hide or show" });
    for (const entry of data.legend) {
      const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(entry), entry.name);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", on);
        if (entry.each) plots.forEach((plot, k) => { if (entry.each[k].length) Plotly.restyle(plot, { visible: on }, entry.each[k]); });
        else for (const plot of data.shared ? plots : plots.slice(0, 1)) Plotly.restyle(plot, { visible: on }, entry.traces);
      });
      box.append(button);
    }
    return box;
  }

  function colourScale(scale) {
    const bar = make("i", { "aria-hidden": "true" });
    mesascope.paint(bar, "background", `linear-gradient(to right, ${scale.colours.join(",")})`);
    const [low, , high] = scale.ends;
    return make("span", { class: "colours" }, low, bar, scale.units ? `${high} ${scale.units}` : high);
  }

  function makeChoice(spec, change) {
    const label = make("label", { class: "choice" }, spec.name);
    if (!spec.slider) {
      const select = make("select", {}, ...spec.options.map((name, k) => make("option", { value: k }, name)));
      select.value = spec.selected;
      select.addEventListener("change", () => change(+select.value));
      label.append(select);
      return label;
    }
    const output = make("output", {}, spec.options[spec.selected]);
    const range = make("input", { type: "range", min: 0, max: spec.options.length - 1, value: spec.selected });
    range.addEventListener("input", () => { output.textContent = spec.options[+range.value]; change(+range.value); });
    label.append(range, output);
    return label;
  }

  function colouredPoints(data, index, plot) {
    const { palette, names, codes, used } = data.marks, kind = index % names.length, code = codes[used[index]];
    const marker = { ...data.plots[plot].data[0].marker, color: code.map(label => palette[label % palette.length]) };
    return { ...data.variants[Math.floor(index / names.length)][plot], marker, customdata: code.map(label => names[kind][label]) };
  }

  function selectCells(data, selection, plot) {
    if (!data.variants) return {};
    const index = (data.choices || []).reduce((sum, spec, k) => sum * spec.options.length + selection[k], 0);
    if (data.marks) return colouredPoints(data, index, plot);
    const cells = data.variants[index][plot];
    if (!data.plots[plot].log || cells.text) return cells;
    return { ...cells, text: cells.z.map(row => row.map(v => v === null ? "" : String(Number((10 ** v).toPrecision(3))))) };
  }

  function stepScaleButton(plots) {
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

  function thinTicks(axis, count, room) {
    let free = -Infinity;
    const kept = axis.tickvals.map((value, k) => {
      const half = 4 * axis.ticktext[k].length + 4, at = value / Math.max(1, count - 1) * room;
      if (at - half < free) return false;
      free = at + half;
      return true;
    });
    return { ...axis, tickangle: 0, ticklabeloverflow: "allow", tickvals: axis.tickvals.filter((_, k) => kept[k]), ticktext: axis.ticktext.filter((_, k) => kept[k]) };
  }

  function truncateTicks(axis, most) {
    if (!axis.ticktext) return axis;
    const short = text => {
      const signs = text.match(/&[^;]+;|./gsu) || [];
      return signs.length > most ? signs.slice(0, most - 1).join("") + "…" : text;
    };
    return { ...axis, ticktext: axis.ticktext.map(short) };
  }

  function drawPlot(spec, cells, element) {
    const layout = { ...spec.layout, height: spec.height, dragmode: coarse ? false : "zoom" };
    layout.yaxis = truncateTicks(layout.yaxis, element.clientWidth < 300 ? 12 : element.clientWidth < 450 ? 18 : spec.wide ? 44 : 26);
    if (spec.thin) layout.xaxis = thinTicks(truncateTicks(layout.xaxis, element.clientWidth < 450 ? 12 : 26), spec.thin, element.clientWidth - 90);
    const traces = spec.data.map(trace => ({ ...trace, ...cells }));
    if (spec.labels) traces[0].customdata = spec.labels[0].map(down => spec.labels[1].map(across => [down, across]));
    element.isDark = mesascope.isDark();
    return Plotly.newPlot(element, mesascope.themed(traces), mesascope.themed(layout), config);
  }

  function drawFigure(host, data) {
    const selection = (data.choices || []).map(spec => spec.selected);
    const plots = [], controls = make("div", { class: "controls" });
    const grid = make("div", { class: "plots" });
    if (data.plots.length > 1) grid.style.gridTemplateColumns = `repeat(auto-fit, minmax(min(100%, ${data.min_width || 270}px * var(--shrink, 1)), 1fr))`;
    const redraw = () => plots.forEach((plot, k) => {
      const cells = mesascope.themed(selectCells(data, selection, k));
      Plotly.restyle(plot, Object.fromEntries(Object.entries(cells).map(([name, value]) => [name, [value]])), [0]);
    });
    (data.choices || []).forEach((spec, k) => {
      if (spec.options.length > 1) controls.append(makeChoice(spec, value => { selection[k] = value; redraw(); }));
    });
    if (data.scale) controls.append(colourScale(data.scale));
    if (data.toggle) controls.append(stepScaleButton(plots));
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
    plots.forEach((element, k) => drawPlot(data.plots[k], selectCells(data, selection, k), element));
  }

  return { make, makeChoice, colourScale, drawFigure };
})();
