// Light and dark mode. Figures are specified in light colours, which a table maps to dark ones and back.
"use strict";
(() => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), listeners = [];
  const toDark = new Map(Object.entries(JSON.parse(document.getElementById("dark-colours").textContent)));
  const toLight = new Map([...toDark].map(([light, dark]) => [dark, light]));
  const COLOUR_KEY = /colou?rs?$|colorscale$|^palette$/, TEXT_KEY = /text$/, SPAN = /(?<=<span style="color:)#\w{6}/g;

  const everywhere = (value, change) => Array.isArray(value) ? value.map(one => everywhere(one, change)) : typeof value === "string" ? change(value) : value;
  function recolour(value, map) {
    if (Array.isArray(value)) return value[0]?.constructor === Object ? value.map(one => recolour(one, map)) : value;
    if (value?.constructor !== Object) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key,
      COLOUR_KEY.test(key) && inner?.constructor !== Object ? everywhere(inner, colour => map.get(colour) ?? colour)
        : TEXT_KEY.test(key) && Array.isArray(inner) ? everywhere(inner, text => text.replace(SPAN, colour => map.get(colour) ?? colour))
          : recolour(inner, map)]));
  }

  mesascope.isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  mesascope.themed = value => mesascope.isDark() ? recolour(value, toDark) : value;
  mesascope.blank = () => mesascope.isDark() ? [29, 33, 38] : [255, 255, 255];  // of cells without a value, as --card in page.css
  mesascope.onTheme = repaint => listeners.push(repaint);
  // Set a property of an element's style, which may contain colours, and set it again when the mode changes.
  mesascope.paint = (element, property, style) => {
    Object.assign(element.dataset, { paint: property, style });
    element.style[property] = mesascope.isDark() ? style.replace(/#\w{6}/g, colour => toDark.get(colour) ?? colour) : style;
  };

  const button = document.querySelector(".theme");
  function repaintPlot(plot) {
    const dark = mesascope.isDark(), map = dark ? toDark : toLight;
    if (plot.isDark === dark) return;
    plot.isDark = dark;
    Plotly.react(plot, recolour(plot.data, map), recolour(plot.layout, map));
  }
  function repaint(plots) {
    button.setAttribute("aria-pressed", mesascope.isDark());
    document.querySelectorAll("[data-paint]").forEach(one => mesascope.paint(one, one.dataset.paint, one.dataset.style));
    listeners.forEach(listener => listener());
    plots([...document.querySelectorAll(".js-plotly-plot")]);
  }
  const repaintAll = plots => plots.forEach(repaintPlot);
  const repaintInTurn = plots => {
    if (!plots.length) return;
    repaintPlot(plots[0]);
    setTimeout(() => repaintInTurn(plots.slice(1)));
  };

  let before = "";
  mesascope.beginLight = () => { before = root.dataset.theme; root.dataset.theme = "light"; repaint(repaintAll); };
  mesascope.endLight = () => { root.dataset.theme = before; repaint(repaintAll); };
  button.addEventListener("click", () => {
    root.dataset.theme = mesascope.isDark() ? "light" : "dark";
    try { localStorage.setItem(`mesascope theme ${location.pathname}`, root.dataset.theme); } catch { /* the mode is not remembered */ }
    repaint(repaintInTurn);
  });
  system.addEventListener("change", () => repaint(repaintInTurn));
  button.hidden = false;
  button.setAttribute("aria-pressed", mesascope.isDark());
})();
