// Controls of edits: heads switched off, and activations patched from a second input.
"use strict";
(() => {
  const { make, makeChoice, quoteToken } = mesascope;
  const { subject, state, texts, find, change, known, listOff } = explorer;

  explorer.namePosition = position => `position ${position} ${quoteToken(texts()[position] || "")}`;

  // Show the result of an edit, and the notes of the server; `draw` returns elements.
  explorer.drawEdit = (name, answer, draw) => {
    const notes = find(`${name}-notes`);
    notes.hidden = !answer || !answer.notes.length;
    notes.textContent = answer ? answer.notes.join(" ") : "";
    find(`${name}-table`).replaceChildren(...answer ? draw() : []);
  };

  explorer.drawAblationControls = () => {
    const chips = listOff().map(([layer, head]) => {
      const chip = make("button", { type: "button", class: "chip", title: "Switch this head on" }, `${layer}.${head} ×`);
      chip.addEventListener("click", () => explorer.toggleHead(layer, head));
      return chip;
    });
    const method = makeChoice({ name: "by", options: subject.methods, slider: false, selected: Math.max(0, subject.methods.indexOf(state.method)) }, k => change({ method: subject.methods[k] }));
    find("ablation-controls").replaceChildren(...chips.length ? ["off:", ...chips, method] : ["No head is off: choose a head above, and switch it off."]);
  };

  explorer.drawPatchingControls = () => {
    const layers = Array.from({ length: subject.layers }, (_, k) => k);
    const controls = [
      makeChoice({ name: "site", options: subject.sites, slider: false, selected: Math.max(0, subject.sites.indexOf(state.site)) }, k => change({ site: subject.sites[k] })),
      makeChoice({ name: "layer", options: layers.map(String), slider: false, selected: state.patched }, patched => change({ patched }))];
    if (state.site === "z") controls.push(makeChoice({ name: "head", options: ["all", ...Array.from({ length: subject.heads }, (_, k) => String(k))], slider: false, selected: state.patchedHead + 1 },
      k => change({ patchedHead: k - 1 })));
    if (known()) controls.push(make("span", { class: "quiet" }, `at ${explorer.namePosition(state.position)}`));
    find("patching-controls").replaceChildren(...controls);
  };

  explorer.readPatch = () => ({ source_prompt: explorer.readPrompt(state.source), site: state.site, layer: state.patched,
    ...state.site === "z" && state.patchedHead >= 0 ? { head: state.patchedHead } : {} });
})();
