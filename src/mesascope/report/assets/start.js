// Draws what can be seen, one figure at a time; what is folded away is drawn when it is opened or printed.
"use strict";
(() => {
  const kinds = { "data-figure": mesascope.figure, "data-attention": mesascope.attention, "data-tokens": mesascope.tokens,
    "data-reader": mesascope.reader, "data-explorer": mesascope.explorer };
  const waiting = new Set(document.querySelectorAll(Object.keys(kinds).map(name => `[${name}]`).join()));
  const draw = host => {
    waiting.delete(host);
    const kind = Object.keys(kinds).find(name => host.hasAttribute(name));
    const json = host.parentElement.querySelector('script[type="application/json"]');
    kinds[kind](host, JSON.parse(json.textContent));
  };
  const open = host => !host.closest("details:not([open])");
  const next = () => {
    const host = [...waiting].find(open);
    if (!host) return;
    draw(host);
    setTimeout(next, 0);
  };
  document.querySelectorAll("details.more").forEach(one => one.addEventListener("toggle", next));
  const fit = () => document.querySelectorAll(".js-plotly-plot").forEach(plot =>
    Plotly.relayout(plot, { width: plot.parentElement.clientWidth }));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach(one => { one.open = true; });
    document.body.classList.add("printing");
    waiting.forEach(draw);
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
  const seen = new IntersectionObserver(entries => entries.filter(one => one.isIntersecting).forEach(one => {
    links.forEach(a => a.removeAttribute("aria-current"));
    links.get(one.target.id)?.setAttribute("aria-current", "true");
  }), { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("section[id]").forEach(one => seen.observe(one));
  next();
})();
