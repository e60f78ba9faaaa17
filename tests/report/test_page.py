"""The page as text: complete, escaped, self-contained."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser

import pytest

from mesascope.checksums import RunError, check_page, identify_run, read_run_record
from mesascope.report import NO_CHECKSUMS, render_report, summarize_run
from mesascope.report.page import read_asset
from mesascope.report.run_info import get_page_title
from pages import read_figure_data


class _Elements(HTMLParser):
    """Parser that collects every element with its attributes, and the text outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text, self.scripts, self._inside = "", [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def parse(html: str) -> _Elements:
    elements = _Elements()
    elements.feed(html)
    return elements


def figures(html: str) -> list[dict]:
    return [json.loads(text) for text in read_figure_data(html)]


@pytest.fixture(scope="module")
def study_page(tmp_path_factory, samples) -> str:
    """Return the page of a study, rendered once since it takes a second."""
    return render_report(samples.write_study(tmp_path_factory.mktemp("runs") / "affine-laptop"))


@pytest.fixture(scope="module")
def inspect_page(tmp_path_factory, samples) -> str:
    """Return the page of an inspected language model."""
    return render_report(samples.write_inspection(tmp_path_factory.mktemp("runs") / "inspect-smol"))


def test_the_verdicts_come_first_and_in_words(study_page, samples):
    text = parse(study_page).text
    for one in samples.verdicts():
        assert one["status"] in text
        assert one["statement"] in text
        assert one["reason"] in text
    assert text.index("contradicted") < text.index("Training of 3 seeds") < text.rindex("Run details")


def test_sections_follow_their_order(study_page):
    headings = re.findall(r"<h2>(.*?)</h2>", study_page)
    assert headings == [
        "Verdicts",
        "Training",
        "Error against known predictors",
        "Head roles",
        "Attention patterns",
        "Read-out through the layers",
        "Direct attribution",
        "Odds and ends",
        "Run details",
        "How to cite",
    ]


def test_every_figure_has_a_caption_and_a_label(study_page):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", study_page, re.S)
    assert len(captions) == study_page.count("<figure") >= 14
    assert all(caption.strip() for caption in captions)
    drawn = [attrs for tag, attrs in parse(study_page).found if tag == "div" and "data-figure" in attrs]
    assert all(attrs["data-label"] for attrs in drawn)


def test_nothing_is_loaded_from_anywhere(study_page, inspect_page):
    for page in (study_page, inspect_page):
        elements = parse(page)
        for tag, attrs in elements.found:
            addresses = [
                v for k, v in attrs.items() if k in ("src", "srcset", "href", "data", "action", "poster") and v
            ]
            assert tag == "a" or all(v.startswith("data:") for v in addresses), (tag, attrs)
        assert not [tag for tag, _ in elements.found if tag in ("iframe", "object", "embed", "base", "img")]
        policy = [
            a["content"] for t, a in elements.found if t == "meta" and "Content-Security" in a.get("http-equiv", "")
        ]
        assert policy
        assert policy[0].startswith("default-src 'none'")


def test_the_page_is_small_enough(study_page, inspect_page):
    assert len(study_page.encode()) < 2.5e6
    assert len(inspect_page.encode()) < 2.5e6


def test_plotly_is_packed_with_the_notice_of_its_licence(study_page):
    packed = re.search(r'<script type="text/plain" id="plotly">([^<]*)</script>', study_page)
    assert packed is not None
    source = gzip.decompress(b64decode(packed[1])).decode()
    assert source == read_asset("plotly/plotly-cartesian.min.js")
    notice = re.search(r"<!--(.*?)-->", study_page, re.S)
    assert notice is not None
    for line in ("Copyright 2012-2026, Plotly, Inc.", "Licensed under the MIT license"):
        assert line in source[:300]
        assert line in notice[1]


def test_much_data_is_packed_and_little_data_is_legible(inspection):
    html = render_report(inspection)
    elements = re.findall(r"<script type=\"(.*?)\"( data-packed)?>", html)
    assert {("text/plain", " data-packed"), ("application/json", "")} <= set(elements)
    texts = read_figure_data(html)
    assert len(texts) == html.count('<figure class="panel') - html.count('<figure class="panel table')
    packed = re.findall(r"data-packed>(.*?)<", html)
    large = [text for text in texts if len(text) > 20_000]
    assert len(packed) == len(large)
    assert all(len(short) < len(text) for short, text in zip(packed, large, strict=True))


def test_an_inspection_of_realistic_size_is_small_enough(tmp_path, inspected):
    run = inspected.write(tmp_path / "run")
    html = render_report(run)
    assert len(html.encode()) < 12e6
    shown = next(data for data in figures(html) if "tokens" in data)
    assert [len(shown["tokens"]), len(shown["tokens"][0])] == [8, 2048]


def test_an_inspection_says_what_was_opened(inspection):
    html = render_report(inspection)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert facts == {
        "model class": "LlamaForCausalLM",
        "parameters": "134.5 million",
        "layers": "30",
        "heads": "9",
        "dtype": "float32",
        "device": "cpu",
        "attention implementation": "sdpa",
        "tokens": "192 in 2 sequences",
        "text": "Python&#39;s reference manual",
    }
    assert summarize_run(inspection)["facts"]["model class"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ({"study": "affine", "title": "Affine recurrences"}, "Affine recurrences"),
        ({"study": "affine"}, "affine"),
        ({"study": "inspect", "model": "gpt2"}, "gpt2"),
        ({"study": "inspect"}, "Run"),
        ({}, "Run"),
    ],
)
def test_the_page_has_a_title_whatever_is_known_of_the_run(run, title):
    assert get_page_title(run) == title


def test_an_identity_is_marked_where_it_is_drawn(inspection):
    html = render_report(inspection)
    assert html.count('<p class="identity"><strong>Holds by construction:</strong> u is minus the gradient of L') == 1


def test_a_study_has_no_panels_of_an_inspection(study_page):
    page = parse(study_page)
    assert not [attrs for _, attrs in page.found if {"data-reader", "data-explorer"} & set(attrs)]


def test_strange_facts_of_a_model_are_named(inspection, tmp_path):
    (tmp_path / "run.json").write_text('{"study": "inspect", "text": "no mapping", "dtype": "float32"}')
    (tmp_path / "model.json").write_text("[1]")
    assert "model.json must contain a JSON object" in parse(render_report(tmp_path)).text
    (tmp_path / "model.json").write_text("{")
    assert "model.json could not be read" in parse(render_report(tmp_path)).text


def test_hostile_words_of_an_inspection_are_never_markup(tmp_path, samples, inspected):
    html = render_report(inspected.hostile(tmp_path / "run", samples.HOSTILE))
    elements = parse(html)
    assert "<img src=x" not in html
    assert "<script>alert" not in html
    assert not [tag for tag, _ in elements.found if tag == "img"]
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert sum("tokens" in data or "patterns" in data for data in figures(html)) == 2


def test_foreign_text_is_never_markup(tmp_path, samples, study_page):
    html = render_report(samples.hostile(tmp_path / "run"))
    elements = parse(html)
    clean = parse(study_page)
    assert "<img src=x" not in html
    assert "<script>alert" not in html
    assert not [tag for tag, _ in elements.found if tag == "img"]
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert sum(t == "script" and not a for t, a in elements.found) == sum(
        t == "script" and not a for t, a in clean.found
    )
    assert not [a for t, a in elements.found if t == "a" and not a["href"].startswith(("#", "http", "results/"))]
    for data in figures(html):
        for plot in data.get("plots", []):
            drawn = json.dumps([plot["data"], plot["layout"]], ensure_ascii=False)
            assert "<script" not in drawn
            assert "<img" not in drawn


def test_what_is_missing_is_left_out(tmp_path):
    (tmp_path / "run.json").write_text('{"study": "affine"}')
    text = parse(render_report(tmp_path)).text
    assert "This run has no verdicts" in text
    assert "mesascope run affine" in text


def test_an_inspected_model_is_not_asked_for_verdicts(inspect_page):
    text = parse(inspect_page).text
    assert "verdict" not in text.lower()
    assert "seed" not in text.lower()
    assert "mesascope inspect HuggingFaceTB/SmolLM2-135M-Instruct" in text


def test_a_damaged_file_is_named(study_run):
    file = study_run / "results/heads.nc"
    file.write_bytes(file.read_bytes()[:500])
    (study_run / "verdicts.json").write_text("[{")
    text = parse(render_report(study_run)).text
    assert "results/heads.nc could not be read" in text
    assert "verdicts.json could not be read" in text
    assert "Attention patterns" in text
    assert any("heads.nc" in one for one in summarize_run(study_run)["problems"])


@pytest.mark.parametrize("content", ["", "step,loss\n", "step,loss\n1,0.5\n2,na", "step,loss\n1,0.5\n2", "what\n1"])
def test_a_log_cut_short_is_no_obstacle(study_run, content):
    (study_run / "models/seed=1/log.csv").write_text(content)
    shutil.rmtree(study_run / "results")  # which take long to render
    assert "Training of" in render_report(study_run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"must hold run\.json"):
        render_report(tmp_path)
    for text in ("[]", "5", "null", "[" * 100_000):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunError, match=r"run.json must be (a JSON object|JSON), but is"):
            render_report(tmp_path)


def test_a_run_without_checksums_says_so(study_run):
    assert NO_CHECKSUMS in parse(render_report(study_run)).text
    assert summarize_run(study_run)["problems"][0] == NO_CHECKSUMS


def test_the_summary_is_plain(study_run):
    found = json.loads(json.dumps(summarize_run(study_run)))
    assert found["counts"] == {"supported": 1, "contradicted": 1, "inconclusive": 1, "not tested at this scale": 1}
    assert found["verdicts"][0]["interval"] == [0.009, 0.017]
    assert [one["file"] for one in found["results"]][:2] == ["results/loss_vs_baselines.nc", "results/heads.nc"]
    assert found["seconds"] == pytest.approx(547.9)


def test_a_report_is_drawn_anew_without_torch(study_run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(study_run, place)
    code = (
        "import sys\nfrom mesascope.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    words = [sys.executable, "-c", code, "report", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == f"mesascope: {NO_CHECKSUMS}\n"
    check_page(place / "report.html", identify_run(read_run_record(place)), "")
    assert (place / "report.html").read_text(encoding="utf-8").startswith(render_report(place))
