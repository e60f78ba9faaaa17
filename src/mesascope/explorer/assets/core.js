// State in the address, requests to the server, and the frame around every view. External text is inserted as text.
"use strict";
const explorer = (() => {
  const { make } = mesascope;
  const subject = JSON.parse(document.getElementById("subject").textContent);
  const secret = new URLSearchParams(location.search).get("token") || "";
  const isText = typeof subject.example === "string", find = id => document.getElementById(id), [first, ...others] = subject.views;
  const defaults = { prompt: String(subject.example), position: -1, colour: "loss", depth: subject.layers, layer: subject.attention_layers[0], head: 0, token: -1,
    off: "", method: subject.methods[0], source: "", site: subject.sites[0], patched: 0, patchedHead: -1, shown: 0, coordinate: 0, baseline: "", objective: "fast_weight" };
  const state = { ...defaults };
  const views = {};

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [name, value] of Object.entries(defaults)) {
      const text = given.get(name), number = Number(text);
      state[name] = text === null ? value : typeof value === "number" ? (Number.isInteger(number) ? number : value) : text;
    }
  }

  function writeAddress() {
    const changed = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
    history.replaceState(null, "", `${location.pathname}${location.search}#${new URLSearchParams(changed)}`);
  }

  const readPrompt = text => isText ? text : text === "" ? "" : Number(text);
  const listOff = () => state.off.split(",").filter(Boolean).map(pair => pair.split(".").map(Number));

  async function request(view, body) {
    let response;
    try {
      response = await fetch(`/api/${view}?token=${encodeURIComponent(secret)}`, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    } catch {
      throw new Error("the server does not answer; start mesascope serve again");
    }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  // A view: `ask` returns the body of its request, or null if there is nothing to show; `draw` gets the answer, or null.
  function addView(name, ask, draw) {
    const section = find(name), problem = document.querySelector(`[data-problem=${name}]`), copy = document.querySelector(`[data-copy-code=${name}]`);
    const code = document.querySelector(`[data-code=${name}]`);
    const view = { answer: null, last: "", asked: 0 };
    const show = (answer, line) => {
      view.answer = answer;
      problem.textContent = line;
      problem.hidden = !line;
      code.textContent = answer ? answer.code : "";
      copy.disabled = !answer;
      draw(answer);
    };
    view.refresh = async () => {
      const body = ask(), wanted = JSON.stringify(body);
      if (wanted === view.last) { if (view.answer) draw(view.answer); return; }
      view.last = wanted;
      const number = ++view.asked;
      if (body === null) { show(null, ""); return; }
      section.setAttribute("aria-busy", "true");
      try {
        const answer = await request(name, body);
        if (number === view.asked) show(answer, "");
      } catch (error) {
        if (number === view.asked) { show(null, error.message); view.last = ""; }
      } finally {
        if (number === view.asked) section.setAttribute("aria-busy", "false");
      }
    };
    copy.addEventListener("click", async () => {
      const done = () => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy as code"; }, 1500); };
      try { await navigator.clipboard.writeText(code.textContent); done(); }
      catch {
        code.closest("details").open = true;
        getSelection().selectAllChildren(code);
        if (document.execCommand("copy")) done();
      }
    });
    views[name] = view;
    return view;
  }

  function change(values) {
    Object.assign(state, values);
    writeAddress();
    refresh();
  }

  let running = 0;  // refreshes; the page is ready when all have ended
  async function refresh() {
    const began = performance.now();
    running += 1;
    await views[first].refresh();
    const count = texts().length;
    if (count && (state.position < 0 || state.position >= count)) { state.position = count - 1; views[first].refresh(); }
    await Promise.all(others.map(name => views[name].refresh()));
    find("status").textContent = count ? `${count} ${first}, ${((performance.now() - began) / 1000).toFixed(2)} s` : "";
    running -= 1;
    if (!running) document.body.dataset.ready = String(+(document.body.dataset.ready || 0) + 1);
  }

  // The input that the first view shows, and its text at every position: tokens, or a coordinate of vectors.
  const input = () => views[first].answer;
  const texts = () => !input() ? [] : input().tokens ? input().tokens.map(one => one.text) : input().inputs.map(row => mesascope.formatNumber(row[state.shown] ?? null));
  const redrawInput = () => views[first].refresh();
  const known = () => state.position >= 0 && state.position < texts().length;
  const colour = (colours, fraction) => `rgb(${mesascope.mixColours(mesascope.themed({ colours }).colours, fraction).join(",")})`;
  const percent = value => value === null ? "–" : value >= .0005 ? `${(100 * value).toFixed(1)}%` : "<0.1%";

  function table(titles, rows) {
    const line = (cells, tag) => make("tr", {}, ...cells.map((cell, k) => {
      const element = make(tag === "td" && k === 0 ? "th" : tag, tag === "th" ? { scope: "col" } : k === 0 ? { scope: "row" } : {});
      element.append(cell);
      if (cell.nodeType && cell.dataset.cell) element.className = cell.dataset.cell;
      return element;
    }));
    return make("table", {}, make("thead", {}, line(titles, "th")), make("tbody", {}, ...rows.map(row => line(row, "td"))));
  }

  mesascope.onTheme(() => Object.values(views).forEach(view => view.refresh()));
  return { subject, state, views, isText, find, readAddress, writeAddress, readPrompt, listOff, addView, change, refresh, input, texts, redrawInput, known, colour, percent, table };
})();
