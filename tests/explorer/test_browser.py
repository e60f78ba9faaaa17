"""The page in a real browser: typing a prompt, clicking a token, switching off a head, an address that is shared."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from mesascope.explorer import ExploredModel, create_app, view_ablation, view_lens, view_tokens

TOKEN = "the-secret"

pytestmark = pytest.mark.needs_chromium

HELPERS = """
const find = selector => document.querySelector(selector), all = selector => [...document.querySelectorAll(selector)];
const settled = () => until(() => !find("[aria-busy=true]") && document.body.dataset.ready);
const after = async action => {
  const before = document.body.dataset.ready;
  action();
  await until(() => document.body.dataset.ready !== before);
  await settled();
};
const submit = (form, field, text) => after(() => { find(field).value = text; find(form).requestSubmit(); });
const pick = (label, name) => after(() => {
  const select = all("label.choice").find(one => one.textContent.startsWith(label)).querySelector("select");
  select.value = [...select.options].find(one => one.textContent === name).value;
  select.dispatchEvent(new Event("change"));
});
"""


def script(steps: str) -> str:
    """Return a probe that waits for the page and returns what the steps note in `said`."""
    ready = "await until(() => find('.t')); await settled();"
    return f"{HELPERS}\nconst said = {{}};\n{ready}\n{{ {steps} }}\nreturn said;"


@contextmanager
def serving(subject: ExploredModel) -> Iterator[str]:
    """Serve the page in a thread; the value is its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = create_app(subject, TOKEN, port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()


USE = """
said.first = all(".t").length;
await submit("#ask", "#prompt", "a list of <b>names</b>");
said.tokens = all(".t").map(one => one.textContent);
await after(() => all(".t")[2].click());
said.here = all(".t").findIndex(one => one.matches(".here"));
said.lens = all("#lens-table tbody tr:last-child td button").map(one => one.title);
await after(() => all("#lens-table tbody tr:last-child td button")[3].click());
said.attributed = find("#attribution-readout").textContent;
await after(() => find('#headmap [aria-label^="layer 1, head 2"]').click());
said.map = find("#pattern-map canvas").getAttribute("aria-label");
said.empty = find("#ablation-controls").textContent;
await after(() => find("#toggle").click());
said.chips = all(".chip").map(one => one.textContent);
said.rows = all("#ablation-table tbody tr").map(one => one.children[2].textContent);
said.off = all("#headmap .off").length;
await pick("by", "mean");
said.mean = all("#ablation-table tbody tr").map(one => one.children[2].textContent);
await pick("colour by", "attention of the clicked token by the head");
said.coloured = all(".t").map(one => one.style.background !== "");
said.code = find("[data-code=ablation]").textContent;
await submit("#patch", "#source", "a list of <i>names</i>");
said.patched = all("#patching-table thead th").map(one => one.textContent);
await submit("#patch", "#source", "short");
said.unequal = find("[data-problem=patching]").textContent;
said.hash = location.hash;
await submit("#ask", "#prompt", "");
said.error = find("[data-problem=tokens]").textContent;
said.left = all("table").length + all(".t").length;
"""


@pytest.fixture(scope="module")
def used(subject, browser):
    with serving(subject) as address:
        return browser.visit(address, script(USE))


def test_a_reader_sees_the_numbers_of_the_views(used, subject):
    seen, messages = used
    prompt = "a list of <b>names</b>"
    assert seen["tokens"] == [one["text"].replace("\n", "↵\n") or "∅" for one in view_tokens(subject, prompt)["tokens"]]
    assert seen["here"] == 2
    top = view_lens(subject, prompt, 2)["rows"][-1]["top"]
    assert seen["lens"] == [f"token {one['id']}" for one in top]
    assert top[3]["text"].strip() in seen["attributed"]
    assert seen["map"].startswith("Attention of layer 1, head 2")
    assert "No head is off" in seen["empty"]
    assert seen["chips"] == ["1.2 ×"]
    assert seen["off"] == 1
    for name, method in (("rows", "zero"), ("mean", "mean")):
        rows = view_ablation(subject, prompt, [[1, 2]], method, 2)["rows"]
        assert seen[name] == [f"{100 * row['after']:.1f}%" if row["after"] >= 5e-4 else "<0.1%" for row in rows]
    assert seen["coloured"] == [True, True, True] + [True] * (len(seen["tokens"]) - 3)
    assert seen["code"] == view_ablation(subject, prompt, [[1, 2]], "mean", 2)["code"]
    assert seen["patched"] == ["next token", "before", "patched", "second prompt", "probability"]
    assert messages == [line for line in messages if "status of 400" in line]


def test_mistakes_are_shown_where_they_were_made(used):
    seen, _ = used
    assert seen["unequal"].startswith("both prompts must have as many tokens")
    assert seen["error"] == "a prompt must not be empty; type a text"
    assert seen["left"] == 0


def test_an_address_has_the_state(used, subject, browser):
    seen, _ = used
    steps = """
    said.prompt = find("#prompt").value; said.source = find("#source").value;
    said.here = all(".t").findIndex(one => one.matches(".here")); said.chips = all(".chip").map(one => one.textContent);
    said.map = find("#pattern-map canvas").getAttribute("aria-label"); said.hash = location.hash;
    said.token = all("#lens-table button[aria-pressed=true]").length > 0;
    """
    with serving(subject) as address:
        again, _ = browser.visit(address + seen["hash"], script(steps))
    assert (again["prompt"], again["source"], again["here"]) == ("a list of <b>names</b>", "short", 2)
    assert (again["chips"], again["map"], again["token"]) == (seen["chips"], seen["map"], True)
    assert "token" not in seen["hash"] or TOKEN not in seen["hash"]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_page_has_a_dark_mode(subject, browser, is_dark):
    steps = """
    const luminance = colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
    const look = () => ({ paper: luminance(getComputedStyle(document.body).backgroundColor),
      text: luminance(getComputedStyle(find(".t")).color), pressed: find(".theme").getAttribute("aria-pressed"),
      cells: [...all(".t"), ...all("#headmap button"), ...all("#lens-table td button")]
        .map(one => one.style.backgroundColor).filter(Boolean),
      image: find("#pattern-map canvas").toDataURL() });
    said.first = look();
    find(".theme").click();
    said.second = look();
    find(".theme").click();
    said.third = look();
    """
    with serving(subject) as address:
        seen, messages = browser.visit(address, script(steps), dark=is_dark)
    assert messages == []
    light, dark = (seen["second"], seen["first"]) if is_dark else (seen["first"], seen["second"])
    assert (light["pressed"], dark["pressed"]) == ("false", "true")
    assert light["paper"] > 0.9 > 0.2 > light["text"]
    assert dark["paper"] < 0.2 < 0.8 < dark["text"]
    assert len(light["cells"]) == len(dark["cells"]) > 30
    assert not set(light["cells"]) & set(dark["cells"])
    assert light["image"] != dark["image"]
    assert seen["third"] == seen["first"]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(subject, browser, width):
    steps = """
    await after(() => find("#toggle").click());
    await submit("#patch", "#source", find("#prompt").value);
    all("details").forEach(one => { one.open = true; });
    await wait(100);
    said.beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    """
    with serving(subject) as address:
        found, _ = browser.visit(address, script(steps), width=width)
    assert found == {"beyond": 0}
