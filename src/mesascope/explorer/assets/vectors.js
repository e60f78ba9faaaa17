// Views of a model of vectors: terms with prediction and truth, logit lens, inner objectives, attribution, and what edits change.
"use strict";
(() => {
  const { make, makeChoice, formatNumber } = mesascope;
  const { subject, state, views, find, addView, change, input, known, table, listOff, drawChart } = explorer;
  const here = () => ({ prompt: state.prompt, position: state.position });
  const number = value => value === null || value === undefined ? "–" : formatNumber(value);
  const column = rows => rows.map(row => row === null ? null : row[state.coordinate] ?? null);
  const numbered = count => Array.from({ length: count }, (_, k) => String(k));

  function writePrompt(sequence, changes) {
    const words = changes.map(([position, coordinate, value]) => `${position}${input().inputs[0].length > 1 ? `.${coordinate}` : ""}=${value}`);
    return words.length ? `${sequence}; ${words.join(", ")}` : String(sequence);
  }

  // The lines that are in every chart: what the task drew, and what the model predicts.
  const truth = () => ({ name: "truth", kind: "truth", values: column(input().truth) });

  function drawTerms(answer) {
    const outputs = answer ? answer.prediction[0].length : 1, inputs = answer ? answer.inputs[0].length : 1, chart = find("terms-chart");
    if (state.coordinate >= outputs || state.coordinate < 0) state.coordinate = 0;
    if (state.shown >= inputs || state.shown < 0) state.shown = 0;
    explorer.drawInput(answer, k => `; prediction ${number(answer.prediction[k][state.coordinate])}, truth ${number(answer.truth[k]?.[state.coordinate])}`);
    (answer?.changes || []).forEach(([position]) => find("text").children[position].classList.add("changed"));
    chart.replaceChildren();
    drawChange(answer);
    if (!answer) return;
    const controls = find("token-controls"), names = Object.keys(answer.baselines), choose = (name, options, selected, pick) => controls.append(makeChoice({ name, options, slider: false, selected }, pick));
    if (inputs > 1) choose("input coordinate", numbered(inputs), state.shown, shown => change({ shown }));
    if (outputs > 1) choose("output coordinate", numbered(outputs), state.coordinate, coordinate => change({ coordinate }));
    choose("compare with", ["no baseline", ...names], names.indexOf(state.baseline) + 1, k => change({ baseline: k ? names[k - 1] : "" }));
    const series = [truth(), { name: "prediction", kind: "before", values: column(answer.prediction) }];
    if (names.includes(state.baseline)) series.push({ name: state.baseline, kind: "source", values: column(answer.baselines[state.baseline]) });
    drawChart(chart, series, "Prediction and truth by position");
  }

  const field = find("value"), label = find("value-label"), undo = find("undo");
  function drawChange(answer) {
    find("change").hidden = !answer || !known();
    if (find("change").hidden) return;
    label.textContent = `Value at position ${state.position}${answer.inputs[0].length > 1 ? `, coordinate ${state.shown}` : ""}`;
    field.value = String(+answer.inputs[state.position][state.shown].toPrecision(6));
    undo.disabled = !answer.changes.length;
    find("changed").textContent = answer.changes.length ? `Changed: ${answer.changes.map(([position, coordinate, value]) => `position ${position}${answer.inputs[0].length > 1 ? `.${coordinate}` : ""} = ${value}`).join(", ")}. From the first changed position on, the truth is not known; compare with baselines, which see the changed terms.` : "";
  }
  const setPrompt = prompt => { find("prompt").value = prompt; change({ prompt }); };
  find("change").addEventListener("submit", event => {
    event.preventDefault();
    if (!input() || field.value === "") return;
    const kept = input().changes.filter(([position, coordinate]) => position !== state.position || coordinate !== state.shown);
    setPrompt(writePrompt(input().number, [...kept, [state.position, state.shown, Number(field.value)]]));
  });
  undo.addEventListener("click", () => { if (input()) setPrompt(writePrompt(input().number, [])); });

  function drawLens(answer) {
    find("lens-table").replaceChildren(...answer ? [table(["depth", "prediction", "loss here", "mean loss"],
      answer.rows.map(row => [row.depth, number(row.prediction[state.coordinate]), number(row.loss), number(row.mean_loss)])),
      make("p", { class: "readout" }, `Truth at position ${state.position}: ${number(input()?.truth[state.position]?.[state.coordinate])}.`)] : []);
  }

  function drawObjective(answer) {
    const names = Object.keys(subject.objectives);
    find("objective-controls").replaceChildren(makeChoice({ name: "objective", options: Object.values(subject.objectives), slider: false, selected: Math.max(0, names.indexOf(state.objective)) }, k => change({ objective: names[k] })));
    find("objective-about").textContent = answer ? answer.description : "";
    mesascope.showTautology(find("objective-identity"), answer ? answer.tautology : "");
    find("objective-table").replaceChildren(...answer ? [table(["update", "before", "after", "cosine", "cosine, keys shuffled"],
      answer.rows.map(row => [`layer ${row.layer}, ${row.sublayer}`, ...["before", "after", "cosine", "cosine_null"].map(name => number(row[name]))]))] : []);
  }

  function drawAttribution(answer) {
    const controls = find("attribution-controls"), scale = explorer.drawHeadmap(answer, "");
    controls.replaceChildren();
    if (!answer) return;
    controls.append(scale);
    const sum = list => formatNumber(list.reduce((total, value) => total + value, 0));
    find("attribution-readout").textContent = `Prediction ${number(answer.prediction)} = embedding ${number(answer.embedding)} + heads ${sum(answer.head.flat())} + MLPs ${sum(answer.mlp)} + biases ${number(answer.biases)}`;
  }

  const drawComparison = (name, answer, changed, more = []) => explorer.drawEdit(name, answer, () => {
    const host = make("div"), losses = answer.loss_before === null ? "" : `Mean loss before: ${number(answer.loss_before)}, ${changed}: ${number(answer.loss_after)}. `;
    const at = values => number(values[state.position]?.[state.coordinate]);
    setTimeout(() => drawChart(host, [truth(), { name: "before", kind: "before", values: column(answer.before) }, { name: changed, kind: "after", values: column(answer.after) }, ...more],
      `Prediction by position, before and ${changed}`));
    return [host, make("p", { class: "readout" }, `At position ${state.position}: before ${at(answer.before)}, ${changed} ${at(answer.after)}. ${losses}Root mean square change of the predictions: ${number(answer.change)}.`)];
  });

  function drawAblation(answer) {
    explorer.drawAblationControls();
    drawComparison("ablation", answer, "after");
  }

  function drawPatching(answer) {
    explorer.drawPatchingControls();
    drawComparison("patching", answer, "patched", answer ? [{ name: "second sequence", kind: "source", values: column(answer.source) }] : []);
  }

  addView("terms", () => ({ prompt: state.prompt }), drawTerms);
  addView("lens", () => known() ? here() : null, drawLens);
  addView("objective", () => known() ? { ...here(), objective: state.objective } : null, drawObjective);
  addView("attribution", () => known() ? { ...here(), coordinate: state.coordinate } : null, drawAttribution);
  addView("ablation", () => known() && state.off ? { prompt: state.prompt, heads: listOff(), method: state.method } : null, drawAblation);
  addView("patching", () => known() && state.source !== "" ? { ...here(), ...explorer.readPatch() } : null, drawPatching);
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => Object.values(views).forEach(view => view.refresh()), 200); });
})();
