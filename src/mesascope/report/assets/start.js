// Draw figures, one at a time, when they are within a window's height of what is seen: the rest is drawn when the reader scrolls
// to it, opens it or prints. Those of plotly wait until it is loaded, and those with much data, which the page stores compressed,
// until it is unpacked.
"use strict";
(() => {
  const kinds = { "data-figure": mesascope.drawFigure, "data-attention": mesascope.drawAttention, "data-tokens": mesascope.drawTokens,
    "data-reader": mesascope.drawTokenView, "data-explorer": mesascope.drawHeadExplorer, "data-graph": mesascope.drawGraph };
  const waiting = new Set(document.querySelectorAll(Object.keys(kinds).map(name => `[${name}]`).join()));
  const near = new Set();
  const drawHost = host => {
    waiting.delete(host);
    observer.unobserve(host);
    const kind = Object.keys(kinds).find(name => host.hasAttribute(name));
    const json = host.parentElement.querySelector('script[type="application/json"]');
    kinds[kind](host, JSON.parse(json.textContent));
  };
  const isReady = host => !host.closest("details:not([open]), .filtered") && (window.Plotly || !host.hasAttribute("data-figure"))
    && !host.parentElement.querySelector("[data-packed]");
  const drawNext = () => {
    const host = [...waiting].find(one => near.has(one) && isReady(one));
    if (!host) return mesascope.showTarget();
    drawHost(host);
    setTimeout(drawNext, 0);
  };
  const observer = new IntersectionObserver(entries => {
    entries.filter(entry => entry.isIntersecting).forEach(entry => near.add(entry.target));
    drawNext();
  }, { rootMargin: "100% 0px" });
  waiting.forEach(host => observer.observe(host));
  mesascope.drawAll = () => { waiting.forEach(host => near.add(host)); drawNext(); };
  document.querySelectorAll("details.more").forEach(details => details.addEventListener("toggle", drawNext));
  const plots = () => document.querySelectorAll(".js-plotly-plot");
  // Fit plots to the width of the paper, and make high curves and maps lower.
  const paperHeight = plot => {
    if (plot.data.every(trace => trace.type === "heatmap")) return Math.min(plot.layout.height, 280);
    const curves = plot.data.every(trace => trace.type === "scatter" && trace.mode !== "markers");
    return curves && plot.layout.height > 300 ? 190 : plot.layout.height;
  };
  const fitPaper = () => plots().forEach(plot => {
    plot.screenHeight = plot.layout.height;
    Plotly.relayout(plot, { width: plot.parentElement.clientWidth, height: paperHeight(plot) });
  });
  const verdicts = document.querySelectorAll("details.verdicts");
  let opened = [];
  mesascope.onFilter(drawNext);
  addEventListener("beforeprint", () => {
    mesascope.clearFilters();
    opened = [...verdicts].filter(details => !details.open);
    opened.forEach(details => { details.open = true; });
    document.body.classList.add("printing");
    [...waiting].filter(isReady).forEach(drawHost);
    mesascope.beginLight();
    fitPaper();
  });
  addEventListener("afterprint", () => {
    opened.forEach(details => { details.open = false; });
    document.body.classList.remove("printing");
    mesascope.endLight();
    plots().forEach(plot => Plotly.relayout(plot, { width: null, autosize: true, height: plot.screenHeight }));
  });
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    try { await navigator.clipboard.writeText(code.textContent); done(); }
    catch { getSelection().selectAllChildren(code); if (document.execCommand("copy")) done(); }
  });
  const fail = (host, error) => host.replaceChildren(mesascope.make("p", { class: "notice" },
    `This figure cannot be drawn: ${error.message}. Open the page in another browser.`));
  const unpack = async script => {
    try { script.replaceWith(mesascope.make("script", { type: "application/json" }, await mesascope.unpackText(script.textContent))); }
    catch (error) { fail([...waiting].find(host => script.parentElement.contains(host)), error); }
  };
  drawNext();
  Promise.all(Array.from(document.querySelectorAll("[data-packed]"), unpack)).then(drawNext);
  mesascope.loadPlotly().then(drawNext, error => document.querySelectorAll("[data-figure]").forEach(host => fail(host, error)));
})();
