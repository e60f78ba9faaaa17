// What edits change: heads switched off, and activations patched from a second prompt.
"use strict";
(() => {
  const { make, makeChoice, quoteToken, formatNumber } = mesascope;
  const { subject, state, views, find, addView, change, known, percent, table, listOff } = explorer;

  function comparison(answer, names) {
    const bars = row => {
      const box = make("div");
      box.dataset.cell = "bars";
      for (const [key] of names) {
        const bar = make("i", { class: `bar ${key}`, "aria-hidden": "true" });
        bar.style.width = `${100 * (row[key] || 0)}%`;
        box.append(bar);
      }
      return box;
    };
    return table(["next token", ...names.map(([, title]) => title), "probability"], answer.rows.map(row => [make("code", {}, quoteToken(row.text)), ...names.map(([key]) => percent(row[key])), bars(row)]));
  }

  function draw(name, answer, names, about) {
    const notes = find(`${name}-notes`);
    notes.hidden = !answer || !answer.notes.length;
    notes.textContent = answer ? answer.notes.join(" ") : "";
    find(`${name}-table`).replaceChildren(...answer ? [comparison(answer, names), make("p", { class: "readout" }, `${about(answer)} KL divergence: ${formatNumber(answer.kl)} nat.`)] : []);
  }

  const nameToken = position => `position ${position} ${quoteToken(views.tokens.answer.tokens[position]?.text || "")}`;

  function drawAblation(answer) {
    const chips = listOff().map(([layer, head]) => {
      const chip = make("button", { type: "button", class: "chip", title: "Switch this head on" }, `${layer}.${head} ×`);
      chip.addEventListener("click", () => explorer.toggleHead(layer, head));
      return chip;
    });
    const method = makeChoice({ name: "by", options: subject.methods, slider: false, selected: Math.max(0, subject.methods.indexOf(state.method)) }, k => change({ method: subject.methods[k] }));
    find("ablation-controls").replaceChildren(...chips.length ? ["off:", ...chips, method] : ["No head is off: choose a head above, and switch it off."]);
    draw("ablation", answer, [["before", "before"], ["after", "after"]], found => `Prediction after ${nameToken(found.position)}.`);
  }

  function drawPatching(answer) {
    const layers = Array.from({ length: subject.layers }, (_, k) => k);
    const controls = [
      makeChoice({ name: "site", options: subject.sites, slider: false, selected: Math.max(0, subject.sites.indexOf(state.site)) }, k => change({ site: subject.sites[k] })),
      makeChoice({ name: "layer", options: layers.map(String), slider: false, selected: state.patched }, patched => change({ patched }))];
    if (state.site === "z") controls.push(makeChoice({ name: "head", options: ["all", ...Array.from({ length: subject.heads }, (_, k) => String(k))], slider: false, selected: state.patchedHead + 1 },
      k => change({ patchedHead: k - 1 })));
    if (known()) controls.push(make("span", { class: "quiet" }, `at ${nameToken(state.position)}`));
    find("patching-controls").replaceChildren(...controls);
    draw("patching", answer, [["before", "before"], ["after", "patched"], ["source", "second prompt"]], found => `Prediction after ${nameToken(found.read_position)}.`);
  }

  addView("ablation", () => known() && state.off ? { prompt: explorer.readPrompt(state.prompt), heads: listOff(), method: state.method, position: state.position } : null, drawAblation);
  addView("patching", () => known() && state.source !== "" ? { prompt: explorer.readPrompt(state.prompt), source_prompt: explorer.readPrompt(state.source), site: state.site, layer: state.patched,
    position: state.position, ...state.site === "z" && state.patchedHead >= 0 ? { head: state.patchedHead } : {} } : null, drawPatching);
})();
