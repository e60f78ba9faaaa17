"""The server answers those who have its address, one line of JSON to every mistake, and two readers at once."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from commands import call
from mesascope.explorer import create_app, server, view_ablation, view_lens, view_pattern, view_tokens
from mesascope.explorer.requests import MAX_BODY

PORT, TOKEN = 8123, "the-secret"
PROMPT = "the statement is a list"


@pytest.fixture(scope="module")
def client(subject):
    return TestClient(create_app(subject, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")


def ask(client, view, body, token=TOKEN, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(f"/api/{view}", params={"token": token}, content=content, **options)


def test_a_view_is_that_of_the_function(client, subject):
    answer = ask(client, "tokens", {"prompt": PROMPT})
    assert answer.status_code == 200
    assert answer.json() == view_tokens(subject, PROMPT)
    ablated = ask(client, "ablation", {"prompt": PROMPT, "heads": [[1, 2]], "method": "mean", "position": 3})
    assert ablated.json() == view_ablation(subject, PROMPT, [[1, 2]], "mean", 3)


def test_the_page_escapes_names_and_loads_nothing(client):
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    assert "tiny &lt;b&gt;model&lt;/b&gt;" in page.text
    assert "<b>model" not in page.text
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not any(f'{attribute}="http' in page.text for attribute in ("src", "href", "action"))
    assert TOKEN not in page.text
    again = client.get("/", params={"token": TOKEN})
    assert again.headers["content-security-policy"] != policy


@pytest.mark.parametrize("token", ["", "wrong", "the-secre", "the-secret2", "\u00e9\u00e9"])
def test_the_token_must_be_right(client, token):
    for answer in (
        client.get("/", params={"token": token}),
        ask(client, "tokens", {"prompt": PROMPT}, token),
        client.get("/nowhere", params={"token": token}),
        client.get("/api/tokens", params={"token": token}),
    ):
        assert (answer.status_code, list(answer.json())) == (403, ["error"])
        assert "token" in answer.json()["error"]
    assert client.get("/").status_code == 403


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", f"127.0.0.1:{PORT + 1}", f"example.org:{PORT}", ""])
def test_the_host_must_be_this_machine(client, host):
    answer = client.get("/", params={"token": TOKEN}, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("the Host header must be one of 127.0.0.1:8123, localhost:8123")
    assert ask(client, "tokens", {"prompt": PROMPT}, headers={"Host": host}).status_code == 403


def test_localhost_is_this_machine(client):
    assert client.get("/", params={"token": TOKEN}, headers={"Host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize(
    ("view", "body", "line"),
    [
        ("tokens", b"{", "a request must be a JSON object, but cannot be read"),
        ("tokens", b"\xff\xfe\x00", "a request must be a JSON object, but cannot be read"),
        ("tokens", b"[" * 100_000, "a request must be a JSON object, but cannot be read"),
        ("tokens", [PROMPT], "a request must be a JSON object, but is"),
        ("tokens", {}, "a request for tokens must have prompt, but lacks prompt"),
        ("tokens", {"prompt": ""}, "a prompt must not be empty"),
        ("tokens", {"prompt": None}, "prompt must be a text, or the number of a sequence, but got None"),
        ("tokens", {"prompt": "word " * 60}, "a prompt must fit into the context of the model, 40 tokens, but has"),
        ("tokens", {"prompt": PROMPT, "colour": 1}, "must have no keys but prompt, but has 'colour'"),
        ("tokens", b'{"prompt": "\\ud800"}', "the tokenizer of tiny"),
        ("pattern", {"prompt": PROMPT, "layer": 7, "head": 0}, "layer must be from 0 to 2, but got 7"),
        ("pattern", {"prompt": PROMPT, "layer": 0, "head": 4}, "head must be from 0 to 3, but got 4"),
        (
            "pattern",
            {"prompt": PROMPT, "layer": True, "head": 0},
            "layer must be an integer of up to 64 bits, but got True",
        ),
        (
            "pattern",
            {"prompt": PROMPT, "layer": 10**400, "head": 0},
            "layer must be an integer of up to 64 bits, but got 1000",
        ),
        ("lens", {"prompt": PROMPT, "position": 1.5}, "position must be an integer of up to 64 bits, but got 1.5"),
        ("lens", {"prompt": PROMPT, "position": 1000}, "position must be from 0 to"),
        ("attribution", {"prompt": PROMPT, "position": 0, "token": -1}, "token must be from 0 to 399, but got -1"),
        ("ablation", {"prompt": PROMPT, "heads": [[0]]}, "heads must be a list of pairs of layer and head"),
        ("ablation", {"prompt": PROMPT, "heads": "all"}, "heads must be a list of pairs of layer and head"),
        ("ablation", {"prompt": PROMPT, "heads": [[0, 0]], "method": "median"}, "a method must be one of zero, mean"),
        (
            "patching",
            {"prompt": PROMPT, "source_prompt": "a", "site": "z", "layer": 0, "position": 0},
            "both prompts must have as many tokens",
        ),
        (
            "patching",
            {"prompt": PROMPT, "source_prompt": PROMPT, "site": "y", "layer": 0, "position": 0},
            "a site must be one of resid_pre, z, but got 'y'",
        ),
    ],
)
def test_a_malformed_request_gets_one_line(client, view, body, line):
    answer = ask(client, view, body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) < 400


def test_what_does_not_exist_is_named(client):
    assert ask(client, "future", {}).status_code == 404
    assert "a view must be one of tokens, pattern" in ask(client, "future", {}).json()["error"]
    assert client.get("/favicon.ico", params={"token": TOKEN}).json() == {"error": "there is no such page"}
    assert client.get("/api/tokens", params={"token": TOKEN}).status_code == 405
    assert ask(client, "tokens", b" " * (MAX_BODY + 1)).status_code == 413


def test_two_readers_at_once_get_the_answers_of_one(client, subject):
    bodies = [
        ("tokens", {"prompt": "the class"}),
        ("pattern", {"prompt": PROMPT, "layer": 1, "head": 2}),
        ("ablation", {"prompt": PROMPT, "heads": [[0, 0], [2, 3]]}),
        ("lens", {"prompt": "a list of names", "position": 2}),
        ("tokens", {"prompt": ""}),
    ]
    alone = [ask(client, *one).json() for one in bodies]
    assert alone[1] == view_pattern(subject, PROMPT, 1, 2)
    assert alone[3] == view_lens(subject, "a list of names", 2)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: ask(client, *one).json(), bodies * 6))
    assert together == alone * 6


def test_a_bug_is_one_line_without_the_model(subject, monkeypatch):
    def fail(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(server, "answer_request", fail)
    app = create_app(subject, TOKEN, PORT)
    answer = ask(TestClient(app, f"http://127.0.0.1:{PORT}", raise_server_exceptions=False), "tokens", {})
    assert (answer.status_code, answer.json()) == (500, {"error": "a bug: TypeError: a bug"})


def test_without_the_packages_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    code, _, err = call("serve", "./nowhere", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert err == "mesascope: serve needs starlette and uvicorn; pip install 'mesascope[serve]'\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve", "./nowhere.gguf"], "a .gguf file must exist"),
        (["serve", "./nowhere", "--dtype", "int3"], "a dtype must be one of float32"),
        (["serve", "./nowhere", "--seed", "1"], "study, condition and seed need the directory of a run"),
        (["serve", "./nowhere", "--port", "70000"], "a port must be from 0 to 65535, but got 70000"),
        (["serve", "./nowhere", "--device", "tpu"], "a device must be auto, cpu, cuda or mps"),
    ],
)
def test_a_mistake_of_the_command_is_one_line(words, line, capsys, monkeypatch):
    code, _, err = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert line in err
    assert err.count("\n") == 1


def test_a_port_in_use_is_named(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = call("serve", "./nowhere", "--port", port, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert f"the port must be free, but {port} is not" in err
