"""A student works in a notebook, by docs/notebook.md: completion, short outputs, a quiet run, tables and figures.

The cells run in the interpreter of IPython, which also completes names and chooses what is shown.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from studies.small_study import SMALL_STUDY

MAX_CHARACTERS = 2000


class ZMQInteractiveShell(InteractiveShell):
    """The interpreter, by the name of that of Jupyter, which packages look for to show progress."""


class Notebook:
    """Cells that run one after another."""

    def __init__(self, folder: Path) -> None:
        self.shell = ZMQInteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        self.shell.display_formatter.active_types = self.shell.display_formatter.format_types  # as in Jupyter
        self.shell.user_ns["folder"] = folder

    def run(self, cell: str) -> str:
        """Run a cell of statements; the value is all that it prints and displays."""
        with capture_output() as shown:
            done = self.shell.run_cell(textwrap.dedent(cell), silent=True)
        done.raise_error()
        return shown.stdout + shown.stderr + "".join(one.data["text/plain"] for one in shown.outputs)

    def evaluate(self, expression: str) -> Any:
        return self.shell.ev(expression)

    def show(self, expression: str) -> dict[str, Any]:
        """What stands below a cell that ends with an expression, by its MIME type."""
        return self.shell.display_formatter.format(self.evaluate(expression))[0]

    def complete(self, text: str) -> set[str]:
        """What the tab key offers."""
        with provisionalcompleter():
            found = list(self.shell.Completer.completions(text, len(text)))
        return {text[: one.start] + one.text for one in found}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "small.py").write_text(SMALL_STUDY)
    opened = Notebook(folder)
    assert opened.run("import torch\nimport mesascope") == ""
    yield opened
    ZMQInteractiveShell.clear_instance()


@pytest.fixture(scope="module")
def with_capture(notebook: Notebook) -> Notebook:
    shown = notebook.run("""
        from mesascope.models.transformer import Decoder, DecoderConfig
        torch.manual_seed(0)
        model = Decoder(DecoderConfig(vocab_size=100))
        acts = mesascope.capture(model, torch.randint(0, 100, (4, 16)), sites=["resid_pre", "pattern"])
    """)
    assert shown == ""
    return notebook


@pytest.fixture(scope="module")
def with_run(notebook: Notebook) -> Notebook:
    shown = notebook.run("""
        from dataclasses import replace
        from mesascope.studies.registry import load_study
        study = replace(load_study(str(folder / "small.py")), name="my-study")
        run = mesascope.run(study, scale="smoke", seeds=1, out=folder / "run", quiet=True)
    """)
    assert shown == ""
    return notebook


def test_names_are_completed(with_capture: Notebook):
    public = with_capture.complete("mesascope.")
    assert {"mesascope.capture", "mesascope.run", "mesascope.wrap", "mesascope.interventions"} <= set(public)
    assert not [name for name in public if name.startswith("mesascope._")]
    assert with_capture.complete("mesascope.cap") == {"mesascope.capture"}
    assert "mesascope.analyses.logit_lens" in with_capture.complete("mesascope.analyses.logit")
    assert "mesascope.interventions.patch" in with_capture.complete("mesascope.interventions.pa")
    assert {"acts.to_dataset", "acts.keys", "acts.readout"} <= set(with_capture.complete("acts."))


def test_a_capture_is_shown_as_a_table(with_capture: Notebook):
    shown = with_capture.show("acts")
    assert "resid_pre  layer 3, batch 4, pos 16, d_model 64" in shown["text/plain"]
    assert shown["text/html"].count("<tr>") == 3  # a header and two sites
    assert with_capture.evaluate("list(acts)") == ["resid_pre", "pattern"]
    assert with_capture.evaluate("acts.to_dataset()")["pattern"].dims == ("layer", "batch", "head", "query", "key")


def test_padding_and_views_of_the_page(with_capture: Notebook):
    """The cells of the page that follow the capture."""
    assert with_capture.evaluate(
        'mesascope.capture(model, [[5, 6, 7], [8]], sites=["logits"]).attention_mask.tolist()'
    ) == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    shown = with_capture.show("mesascope.show_patterns(acts)")
    assert shown["text/html"].startswith("<iframe sandbox=")
    assert len(shown["text/plain"]) < 120


@pytest.mark.parametrize(
    "expression",
    [
        "acts",
        "acts.readout",
        "run",
        "study",
        "study.main",
        "study.main.task",
        "study.main.model",
        "study.main.analyses[0]",
        "study.claims[0]",
        "study.citation",
        "study.main.task.sample(8, torch.Generator().manual_seed(0))",
        "mesascope.analyses.logit_lens",
        "mesascope.interventions.zero('z', {'layer': 1})",
        "mesascope.interventions.logit_difference(1, 2)",
    ],
)
def test_no_output_fills_the_page(with_capture: Notebook, with_run: Notebook, expression: str):
    shown = with_run.show(expression)
    assert 20 < len(shown["text/plain"]) < MAX_CHARACTERS
    assert len(shown.get("text/html", "")) < 10 * MAX_CHARACTERS


def test_a_finished_run_is_a_table_of_verdicts_and_datasets(with_run: Notebook):
    verdicts = with_run.evaluate("run.verdicts")
    assert {"name", "statement", "status", "value", "control"} <= set(verdicts.columns)
    assert len(verdicts) == len(with_run.evaluate("study.claims"))
    assert "supported" not in set(verdicts["status"])  # of one seed, nothing is decided
    assert "my-study" in with_run.show("run")["text/plain"]
    assert "<table" in with_run.show("run.verdicts")["text/html"]
    names = with_run.evaluate("run.result_names()")
    assert names == ["loss_vs_baselines"]
    assert "xarray.Dataset" in with_run.show("run[run.result_names()[0]]")["text/plain"]
    assert with_run.evaluate("run.report()").is_file()
    assert with_run.evaluate("mesascope.Run.open(run.path).verdicts.equals(run.verdicts)")


def test_a_run_shows_its_progress_where_it_may(with_run: Notebook):
    """`quiet=True` was what kept the first run quiet; the verdicts are the same."""
    shown = with_run.run('again = mesascope.run(study, scale="smoke", seeds=1, out=folder / "again")')
    assert "training and analysis" in shown
    assert with_run.evaluate("again.verdicts.equals(run.verdicts)")


def test_keys_of_a_run_are_completed(with_run: Notebook):
    assert any(name.startswith('run["loss_vs_baselines') for name in with_run.complete('run["'))


def test_every_figure_of_the_report_is_there(with_run: Notebook):
    figures = with_run.evaluate("mesascope.figures(run)")
    assert "training" in figures
    for name, figure in figures.items():
        assert figure.layout.meta["caption"], name
        assert figure.data, name
    tables = with_run.evaluate("mesascope.tables(run)")
    assert len(tables["verdicts"]) == len(with_run.evaluate("run.verdicts"))


def test_a_mistake_ends_in_one_line_that_says_what_to_do(with_capture: Notebook, with_run: Notebook):
    with pytest.raises(ValueError, match="a study must be one of affine") as error:
        with_run.evaluate('mesascope.run("afine", scale="smoke")')
    assert "\n" not in str(error.value)
    with pytest.raises(KeyError, match="pattern"):
        with_run.evaluate('acts["patern"]')
