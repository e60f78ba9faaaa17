// Views of a language model: tokens, logit lens and direct logit attribution at the clicked token, and what edits change.
"use strict";
(() => {
  const { make, makeChoice, quoteToken, formatNumber } = mesascope;
  const { subject, state, find, addView, change, known, colour, percent, table, listOff } = explorer;
  const here = () => ({ prompt: explorer.readPrompt(state.prompt), position: state.position });

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

  function drawAttribution(answer) {
    const controls = find("attribution-controls"), scale = explorer.drawHeadmap(answer, "logit");
    controls.replaceChildren();
    if (!answer) return;
    const listed = answer.top.some(one => one.id === answer.token.id) ? answer.top : [answer.token, ...answer.top];
    controls.append(makeChoice({ name: "token", options: listed.map(one => quoteToken(one.text)), slider: false, selected: listed.findIndex(one => one.id === answer.token.id) },
      k => change({ token: listed[k].id })), scale);
    const sum = list => formatNumber(list.reduce((total, value) => total + value, 0));
    find("attribution-readout").textContent = `${quoteToken(answer.token.text)}: logit ${formatNumber(answer.total)} = embedding ${formatNumber(answer.embedding)} + heads ${sum(answer.head.flat())} + MLPs ${sum(answer.mlp)} + biases ${sum([...answer.attention_bias, answer.readout_bias])}`;
  }

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

  const drawComparison = (name, answer, names, position) => explorer.drawEdit(name, answer, () => [comparison(answer, names),
    make("p", { class: "readout" }, `Prediction after ${explorer.namePosition(position())}. KL divergence: ${formatNumber(answer.kl)} nat.`)]);

  function drawAblation(answer) {
    explorer.drawAblationControls();
    drawComparison("ablation", answer, [["before", "before"], ["after", "after"]], () => answer.position);
  }

  function drawPatching(answer) {
    explorer.drawPatchingControls();
    drawComparison("patching", answer, [["before", "before"], ["after", "patched"], ["source", "second prompt"]], () => answer.read_position);
  }

  addView("tokens", () => ({ prompt: explorer.readPrompt(state.prompt) }), answer => explorer.drawInput(answer));
  addView("lens", () => known() ? here() : null, drawLens);
  addView("attribution", () => known() ? { ...here(), ...state.token >= 0 ? { token: state.token } : {} } : null, drawAttribution);
  addView("ablation", () => known() && state.off ? { ...here(), heads: listOff(), method: state.method } : null, drawAblation);
  addView("patching", () => known() && state.source !== "" ? { ...here(), ...explorer.readPatch() } : null, drawPatching);
})();
