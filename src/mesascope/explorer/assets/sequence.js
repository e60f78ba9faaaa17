// The input, position by position, coloured by a quantity: tokens, or a coordinate of vectors.
"use strict";
(() => {
  const { make, makeChoice, quoteToken, formatNumber } = mesascope;
  const { subject, state, views, find, change, texts, known, colour } = explorer;
  const text = find("text"), readout = find("token-readout"), controls = find("token-controls");

  const values = answer => {
    if (state.colour === "attention") return views.pattern.answer && known() ? views.pattern.answer.pattern[state.position] || [] : [];
    if (state.colour === "norm") return answer.norm[Math.min(state.depth, subject.layers)];
    return answer[state.colour];
  };

  // Draw the answer of the first view; `tell` returns more words about a position.
  explorer.drawInput = (answer, tell = () => "") => {
    text.replaceChildren();
    controls.replaceChildren();
    readout.textContent = "";
    if (!answer) return;
    const chosen = Math.max(0, subject.quantities.findIndex(([key]) => key === state.colour)), [key, , units] = subject.quantities[chosen];
    controls.append(makeChoice({ name: "colour by", options: subject.quantities.map(([, name]) => name), slider: false, selected: chosen }, k => change({ colour: subject.quantities[k][0] })));
    if (key === "norm") controls.append(makeChoice({ name: "depth", options: answer.depths, slider: true, selected: Math.min(state.depth, subject.layers) }, depth => change({ depth })));
    const shown = values(answer) || [], numbers = shown.filter(value => value !== null && value !== undefined);
    const low = key === "norm" ? Math.min(...numbers) : Math.min(0, ...numbers), high = key === "probability" ? 1 : Math.max(...numbers);
    if (numbers.length) controls.append(mesascope.colourScale({ colours: subject.tints, ends: mesascope.formatEnds(low, high, false), units }));
    const words = texts();
    const describe = k => {
      const value = shown[k] === null || shown[k] === undefined ? "no value" : `${formatNumber(shown[k])} ${units}`.trim();
      readout.textContent = `position ${k} ${quoteToken(words[k])}: ${value}${tell(k)}`;
    };
    text.append(...words.map((word, k) => {
      const span = make("span", { class: k === state.position ? "t here" : "t" }, mesascope.makeVisible(word).replaceAll("\n", "↵\n") || "∅");
      const value = shown[k];
      if (value !== null && value !== undefined) span.style.background = colour(subject.tints, high > low ? (value - low) / (high - low) : 0);
      span.addEventListener("pointerenter", () => describe(k));
      span.addEventListener("click", () => change({ position: k, token: -1 }));
      return span;
    }));
    if (known()) describe(state.position);
  };

  text.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !known()) return;
    event.preventDefault();
    change({ position: Math.max(0, Math.min(texts().length - 1, state.position + move)), token: -1 });
  });
})();
