// Contents, links to sections and figures, and filters.
"use strict";
(() => {
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

  for (const target of document.querySelectorAll("main :is(section, figure, article)[id]")) {
    const title = target.querySelector(":scope > :is(h2, h3), :scope > .says > h3");
    const link = mesascope.make("a", { class: "anchor", href: `#${encodeURIComponent(target.id)}`, "aria-label": `Link to ${title ? title.textContent : "this figure"}` }, "#");
    if (!title) { target.querySelector("figcaption").append(" ", link); continue; }
    const box = mesascope.make("div", { class: "heading" });
    title.replaceWith(box);
    box.append(title, link);
  }

  // Open what contains the target of the address, and scroll to it until the reader scrolls, or figures should be drawn.
  const SETTLED = 5000;  // milliseconds
  let scrolled = false, opened = 0;
  for (const name of ["wheel", "touchmove", "keydown", "pointerdown"]) addEventListener(name, () => { scrolled = true; }, { passive: true });
  const findTarget = () => { try { return document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return null; } };
  const openTarget = () => {
    const target = findTarget();
    if (!target) return;
    scrolled = false;
    opened = performance.now();
    if (target.closest(".filtered")) mesascope.clearFilters();
    for (let details = target.closest("details"); details; details = details.parentElement.closest("details")) details.open = true;
    target.scrollIntoView();
  };
  mesascope.showTarget = () => { if (!scrolled && performance.now() < opened + SETTLED) findTarget()?.scrollIntoView(); };
  addEventListener("hashchange", openTarget);

  // A filter shows the items whose text contains all its words; an entry of the contents follows its section.
  const listeners = [], filters = [];
  const SECTION_TEXT = "h2, h3, p, li, figcaption, summary, th, td";  // not the data of figures
  const readText = item => (item.matches("section") ? [...item.querySelectorAll(SECTION_TEXT)] : [item]).map(one => one.textContent).join(" ").toLowerCase();
  for (const input of document.querySelectorAll("[data-filter]")) {
    const box = input.closest(".filter"), items = [...document.querySelectorAll(input.dataset.filter)].filter(one => !one.parentElement.closest("details.verdicts"));
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = items.map(item => !words.length || words.every(word => readText(item).includes(word)));
      items.forEach((item, k) => {
        item.classList.toggle("filtered", !fits[k]);
        links.get(item.id)?.parentElement.classList.toggle("filtered", !fits[k]);
      });
      box.querySelector("output").textContent = words.length ? `${fits.filter(Boolean).length} of ${items.length}` : "";
      listeners.forEach(listener => listener());
    };
    input.addEventListener("input", apply);
    input.addEventListener("keydown", event => { if (event.key === "Escape") { input.value = ""; apply(); } });
    filters.push(() => { if (input.value) { input.value = ""; apply(); } });
    box.hidden = false;
  }
  mesascope.onFilter = listener => listeners.push(listener);
  mesascope.clearFilters = () => filters.forEach(clear => clear());
  openTarget();
})();
