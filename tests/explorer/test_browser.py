"""The page in a real browser: typing a prompt, clicking a token, switching off a head, an address that is shared."""

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import pytest
import uvicorn

from mesascope.explorer import ExploredModel, create_app, view_ablation, view_lens, view_tokens

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=60000 --dump-dom"
).split()
TOKEN = "the-secret"

pytestmark = [pytest.mark.needs_chromium, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]

HELPERS = """
const find = selector => document.querySelector(selector), all = selector => [...document.querySelectorAll(selector)];
const wait = () => new Promise(done => setTimeout(done, 50));
const until = async condition => { for (let k = 0; k < 400 && !condition(); k++) await wait(); };
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
    """Return a script that notes what it sees with `say`, in the body's data."""
    return (
        f"{HELPERS}\naddEventListener('load', async () => {{ const said = {{}}; try {{ await until(() => find('.t')); "
        f"await settled();\n{steps}\n}} catch (error) {{ said.failed = String(error); }} "
        "document.body.dataset.said = JSON.stringify(said); });"
    )


class WithScript:
    """The application with one more script in its page; frames may show it."""

    def __init__(self, app, added: str) -> None:
        self.app, self.added = app, added

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("path", "").startswith("/frame-"):
            width, query = scope["path"].partition("-")[2], scope["query_string"].decode()
            frame = f'<iframe src="/?{query}" style="width:{width}px;height:4000px;border:0"></iframe>'
            headers = [(b"content-type", b"text/html")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": frame.encode()})
            return
        if scope.get("path") != "/":
            await self.app(scope, receive, send)
            return
        start: dict = {}

        async def change(message):
            if message["type"] == "http.response.start":
                start.update(message)
                return
            page = message["body"].decode()
            nonce = re.search(r'<script nonce="([^"]+)"', page)[1]
            body = page.replace("</body>", f'<script nonce="{nonce}">{self.added}</script></body>').encode()
            policy = re.compile(rb"; frame-ancestors 'none'")
            headers = [(name, policy.sub(b"", value)) for name, value in start["headers"] if name != b"content-length"]
            headers = [one for one in headers if one[0] != b"cross-origin-resource-policy"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({**message, "body": body})

        await self.app(scope, receive, change)


@contextmanager
def serving(subject: ExploredModel, added: str = "") -> Iterator[str]:
    """Serve the page in a thread; the value is its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = WithScript(create_app(subject, TOKEN, port), added)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()


def look(address: str, folder: Path, width: int = 1280, flags: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Return the document after its scripts have run, and the console messages."""
    target = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", address]
    command = [str(CHROMIUM), *QUIET, *flags, *target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def said(dom: str) -> dict:
    return json.loads(unescape(re.search(r'data-said="([^"]*)"', dom)[1]))


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
def used(subject, tmp_path_factory):
    with serving(subject, script(USE)) as address:
        dom, messages = look(address, tmp_path_factory.mktemp("browser"))
    return said(dom), messages


def test_a_reader_sees_the_numbers_of_the_views(used, subject):
    seen, messages = used
    assert "failed" not in seen, seen
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


def test_an_address_has_the_state(used, subject, tmp_path):
    seen, _ = used
    steps = """
    said.prompt = find("#prompt").value; said.source = find("#source").value;
    said.here = all(".t").findIndex(one => one.matches(".here")); said.chips = all(".chip").map(one => one.textContent);
    said.map = find("#pattern-map canvas").getAttribute("aria-label"); said.hash = location.hash;
    said.token = all("#lens-table button[aria-pressed=true]").length > 0;
    """
    with serving(subject, script(steps)) as address:
        again = said(look(address + seen["hash"], tmp_path)[0])
    assert "failed" not in again, again
    assert (again["prompt"], again["source"], again["here"]) == ("a list of <b>names</b>", "short", 2)
    assert (again["chips"], again["map"], again["token"]) == (seen["chips"], seen["map"], True)
    assert "token" not in seen["hash"] or TOKEN not in seen["hash"]


@pytest.mark.parametrize("flags", [(), ("--blink-settings=preferredColorScheme=0",)], ids=["light", "dark"])
def test_the_page_has_a_dark_mode(subject, tmp_path, flags):
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
    with serving(subject, script(steps)) as address:
        dom, messages = look(address, tmp_path, flags=flags)
    seen = said(dom)
    assert "failed" not in seen, seen
    assert messages == []
    light, dark = (seen["second"], seen["first"]) if flags else (seen["first"], seen["second"])
    assert (light["pressed"], dark["pressed"]) == ("false", "true")
    assert light["paper"] > 0.9 > 0.2 > light["text"]
    assert dark["paper"] < 0.2 < 0.8 < dark["text"]
    assert len(light["cells"]) == len(dark["cells"]) > 30
    assert not set(light["cells"]) & set(dark["cells"])
    assert light["image"] != dark["image"]
    assert seen["third"] == seen["first"]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(subject, tmp_path, width):
    """In a frame, since the window of this browser is at least 500 pixels wide."""
    steps = """
    await after(() => find("#toggle").click());
    await submit("#patch", "#source", find("#prompt").value);
    all("details").forEach(one => { one.open = true; });
    await new Promise(done => setTimeout(done, 100));
    said.beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    top.document.body.dataset.said = JSON.stringify(said);
    """
    with serving(subject, script(steps)) as address:
        found = said(look(address.replace("/?", f"/frame-{width}?"), tmp_path)[0])
    assert found == {"beyond": 0}
