// Forms, and the state of the address.
"use strict";
(() => {
  const { state, find, isText, change, refresh, readAddress } = explorer;
  const prompt = find("prompt"), source = find("source");
  const load = () => {
    readAddress();
    prompt.value = state.prompt;
    source.value = state.source;
    refresh();
  };
  const bind = (form, field, name) => {
    let timer = 0;
    const submit = () => { clearTimeout(timer); if (field.value !== state[name]) change(name === "prompt" ? { prompt: field.value, position: -1, token: -1 } : { [name]: field.value }); };
    form.addEventListener("submit", event => { event.preventDefault(); submit(); });
    field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(submit, 700); });
    if (isText) field.addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      submit();
    });
  };
  bind(find("ask"), prompt, "prompt");
  bind(find("patch"), source, "source");
  addEventListener("hashchange", load);
  addEventListener("beforeprint", mesascope.beginLight);
  addEventListener("afterprint", mesascope.endLight);
  load();
})();
