// Draw visible figures, one at a time; collapsed ones are drawn when they are opened or printed.
"use strict";
(() => {
  const kinds = { "data-figure": mesascope.drawFigure, "data-attention": mesascope.drawAttention, "data-tokens": mesascope.drawTokens,
    "data-reader": mesascope.drawTokenView, "data-explorer": mesascope.drawHeadExplorer, "data-graph": mesascope.drawGraph };
  const waiting = new Set(document.querySelectorAll(Object.keys(kinds).map(name => `[${name}]`).join()));
  const drawHost = host => {
    waiting.delete(host);
    const kind = Object.keys(kinds).find(name => host.hasAttribute(name));
    const json = host.parentElement.querySelector('script[type="application/json"]');
    kinds[kind](host, JSON.parse(json.textContent));
  };
  const isVisible = host => !host.closest("details:not([open])");
  const drawNext = () => {
    const host = [...waiting].find(isVisible);
    if (!host) return;
    drawHost(host);
    setTimeout(drawNext, 0);
  };
  document.querySelectorAll("details.more").forEach(details => details.addEventListener("toggle", drawNext));
  const fit = () => document.querySelectorAll(".js-plotly-plot").forEach(plot =>
    Plotly.relayout(plot, { width: plot.parentElement.clientWidth }));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach(details => { details.open = true; });
    document.body.classList.add("printing");
    waiting.forEach(drawHost);
    fit();
  });
  addEventListener("afterprint", () => {
    document.body.classList.remove("printing");
    document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.relayout(plot, { width: null, autosize: true }));
  });
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    try { await navigator.clipboard.writeText(code.textContent); done(); }
    catch { getSelection().selectAllChildren(code); if (document.execCommand("copy")) done(); }
  });
  const contents = document.querySelector("nav details"), small = matchMedia("(max-width: 1099px)");
  const fold = () => { contents.open = !small.matches; };
  small.addEventListener("change", fold);
  fold();
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.getAttribute("href").slice(1), a]));
  const observer = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    links.forEach(a => a.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }), { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("section[id]").forEach(section => observer.observe(section));
  drawNext();
})();
