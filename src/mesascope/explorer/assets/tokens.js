// Tokens coloured by a quantity, and the logit lens at the clicked token.
"use strict";
(() => {
  const { make, makeChoice, quoteToken, formatNumber } = mesascope;
  const { subject, state, views, find, addView, change, known, colour, percent, table } = explorer;
  const text = find("text"), readout = find("token-readout"), controls = find("token-controls");
  const quantities = [["loss", "loss of the token", "nat"], ["probability", "probability of the next token", ""],
    ["attention", "attention of the clicked token by the head", ""], ["norm", "norm of the residual stream", ""]];

  const values = answer => {
    if (state.colour === "attention") return views.pattern.answer && known() ? views.pattern.answer.pattern[state.position] || [] : [];
    if (state.colour === "norm") return answer.norm[Math.min(state.depth, subject.layers)];
    return answer[state.colour];
  };

  function drawTokens(answer) {
    text.replaceChildren();
    controls.replaceChildren();
    readout.textContent = "";
    if (!answer) return;
    const chosen = Math.max(0, quantities.findIndex(([key]) => key === state.colour));
    controls.append(makeChoice({ name: "colour by", options: quantities.map(([, name]) => name), slider: false, selected: chosen }, k => change({ colour: quantities[k][0] })));
    if (state.colour === "norm") controls.append(makeChoice({ name: "depth", options: answer.depths, slider: true, selected: Math.min(state.depth, subject.layers) }, depth => change({ depth })));
    const shown = values(answer), numbers = shown.filter(value => value !== null && value !== undefined), units = quantities[chosen][2];
    const low = ["loss", "probability", "attention"].includes(state.colour) ? 0 : Math.min(...numbers), high = state.colour === "probability" ? 1 : Math.max(...numbers);
    if (numbers.length) controls.append(mesascope.colourScale({ colours: subject.tints, ends: mesascope.formatEnds(low, high, false), units }));
    const describe = k => {
      const value = shown[k] === null || shown[k] === undefined ? "no value" : `${formatNumber(shown[k])} ${units}`;
      readout.textContent = `position ${k} ${quoteToken(answer.tokens[k].text)}: ${value}`;
    };
    text.append(...answer.tokens.map((token, k) => {
      const span = make("span", { class: k === state.position ? "t here" : "t" }, mesascope.makeVisible(token.text).replaceAll("\n", "↵\n") || "∅");
      const value = shown[k];
      if (value !== null && value !== undefined) span.style.background = colour(subject.tints, high > low ? (value - low) / (high - low) : 0);
      span.addEventListener("pointerenter", () => describe(k));
      span.addEventListener("click", () => change({ position: k, token: -1 }));
      return span;
    }));
    if (known()) describe(state.position);
  }

  text.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !known()) return;
    event.preventDefault();
    change({ position: Math.max(0, Math.min(views.tokens.answer.tokens.length - 1, state.position + move)), token: -1 });
  });

  function drawLens(answer) {
    const host = find("lens-table");
    if (!answer) { host.replaceChildren(); return; }
    const cell = one => {
      const button = make("button", { type: "button", "aria-pressed": one.id === state.token, title: `token ${one.id}` }, quoteToken(one.text));
      button.style.background = colour(subject.tints, one.probability || 0);
      button.addEventListener("click", () => change({ token: one.id }));
      return make("span", {}, button, make("span", { class: "p" }, percent(one.probability)));
    };
    host.replaceChildren(table(["depth", ...answer.rows[0].top.map((_, k) => `top ${k + 1}`)], answer.rows.map(row => [row.depth, ...row.top.map(cell)])));
  }

  addView("tokens", () => ({ prompt: explorer.readPrompt(state.prompt) }), drawTokens);
  addView("lens", () => known() ? { prompt: explorer.readPrompt(state.prompt), position: state.position } : null, drawLens);
})();
