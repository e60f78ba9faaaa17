"""The notebooks in examples/ run as they are, and their numbers are those that their text explains."""

import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NAMES = ("activation_patching", "first_look", "own_task_and_study", "paper_figures")
GGUF = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_BYTES = 20_000
SECONDS_PER_CELL = 120

VALUES = {  # by notebook: variables at its end, as JSON
    "first_look": {
        "deviation": "deviation",
        "continuation": "[tokenizer.decode([token]) for token in top.indices]",
        "lens_first": "lens_first.values.tolist()",
        "lens_repetition": "lens_repetition.values.tolist()",
        "induction": "table['role'].str.contains('induction').pipe(lambda found: table.index[found].tolist())",
        "decoy": "table.loc[(0, 2), ['score', 'score_null', 'score_null_no_repetition']].tolist()",
        "previous": "roles[roles == 'previous token'].index.tolist()",
        "attended": "[names[query], names[key], float(pattern[query, key])]",
    },
    "activation_patching": {
        "recovered": "recovered.values.tolist()",
        "differing": "before['pos'].values[~unchanged.values].tolist()",
        "elsewhere": "float(abs(before['effect'].sel(layer=0).where(unchanged)).max())",
        "composition": "pd.DataFrame(composition).loc[3].tolist()",
        "largest_other_path": "float(pd.DataFrame(composition).drop(index=3).abs().max().max())",
        "total": "[total, float(metric(acts['logits']).mean())]",
        "heads": "heads.astype(float).reset_index().to_dict('records')",
        "decoy": "(right.head - wrong.head)[1, 10].tolist()",
    },
    "own_task_and_study": {
        "verdicts": "run.verdicts[['status', 'value', 'control']].to_dict('records')",
        "loss": "loss.mean('seed').to_series().to_dict()",
        "null": "float(attention['score_null'].mean())",
        "most": "attention['score'].isel(step=-1).max('head').values.tolist()",
        "ablation": "[scores.values.tolist(), ablation['value'].values.tolist()]",
    },
    "paper_figures": {
        "latex": "latex",
        "status": "run.verdicts['status'].tolist()",
        "errors": "errors['mean'].to_dict()",
        "figures": "list(figures)",
        "pdf": "pdf.read_bytes()[:5].decode()",
        "untrained": "probe['step'].values.tolist()",
    },
}


class CurrentInterpreter(KernelSpecManager):
    """Starts the kernel in the interpreter of the tests, whatever kernels are installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def make_kernel_environment(folder: Path) -> dict[str, str]:
    """The environment of the tests, with the files of Jupyter in a folder, and mesascope wherever the kernel runs."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "IPYTHONDIR": str(folder / "ipython"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger of ipykernel warns about frozen modules
    }


def read_notebook(name: str) -> NotebookNode:
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells of a notebook in a folder; raises the error of a cell."""
    kernel = AsyncKernelManager(kernel_spec_manager=CurrentInterpreter(), kernel_name="tests")
    kernel.connection_file = str(folder / "kernel.json")
    client = NotebookClient(
        notebook, km=kernel, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute(env=make_kernel_environment(folder))
    finally:
        client._cleanup_kernel()


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NotebookNode]:
    """Any notebook after its cells have run, once for all tests; its last cell prints its `VALUES`."""

    @cache
    def run(name: str) -> NotebookNode:
        notebook = read_notebook(name)
        values = ", ".join(f"{key!r}: {code}" for key, code in VALUES[name].items())
        notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{values}}}))"))
        execute(notebook, tmp_path_factory.mktemp(name))
        return notebook

    return run


def read_values(notebook: NotebookNode) -> dict[str, Any]:
    return json.loads(notebook.cells[-1].outputs[-1].text)


def list_outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def count_images(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in list_outputs(notebook))


def read_printed(notebook: NotebookNode) -> str:
    return "".join(output.text for output in list_outputs(notebook) if output.output_type == "stream")


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_small_and_committed_without_outputs(name: str):
    path = ROOT / "examples" / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    notebook = read_notebook(name)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_links_inside_lead_somewhere(name: str):
    text = "\n".join(cell.source for cell in read_notebook(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    for target in [*links, *re.findall(r"`(\w+\.ipynb)`", text)]:
        assert (ROOT / "examples" / target).exists(), target


def test_every_notebook_is_run():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb")) == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_show_results_and_no_warnings(executed: Callable[[str], NotebookNode], name: str):
    outputs = list_outputs(executed(name))
    assert count_images(executed(name)) == 1
    assert len(outputs) >= 8
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in errors if "Warning" in text.replace("TqdmWarning: IProgress not found", "")]


@pytest.mark.slow
def test_first_look(executed: Callable[[str], NotebookNode]):
    values = read_values(executed("first_look"))
    assert values["deviation"] < 1e-4
    assert values["continuation"][-1] == "milk"
    assert values["lens_first"][0] == pytest.approx(3.69, abs=0.02)
    assert min(values["lens_first"]) > 3.5
    assert values["lens_repetition"][-1] < 0.1 < 3.5 < values["lens_repetition"][-2]
    assert values["induction"] == [[1, 5]]
    score, shuffled, without_repetition = values["decoy"]
    assert shuffled < 0.1 < 0.9 < min(score, without_repetition)
    assert values["previous"] == [[0, 3]]
    assert values["attended"] == ["john", "milk", pytest.approx(1, abs=0.01)]
    assert "2,686,684 parameters" in read_printed(executed("first_look"))


@pytest.mark.slow
def test_activation_patching(executed: Callable[[str], NotebookNode]):
    values = read_values(executed("activation_patching"))
    recovered = values["recovered"]
    assert [recovered[0][2], recovered[0][4], recovered[1][3], recovered[1][5]] == pytest.approx([0.5] * 4, abs=0.02)
    assert recovered[2][-1] == pytest.approx(1)
    total_recovered = sum(abs(value) for row in recovered for value in row)
    assert total_recovered == pytest.approx(3, abs=0.05)  # nothing else recovers anything
    assert values["differing"] == [2, 4]
    assert values["elsewhere"] == 0
    assert values["composition"] == pytest.approx([0, 1, 0], abs=0.01)  # query, key, value
    assert values["largest_other_path"] < 0.01
    assert values["total"][0] == pytest.approx(values["total"][1], abs=1e-4)
    heads = {(row["layer"], row["head"]): row for row in values["heads"]}
    for row in (heads[0, 3], heads[1, 5]):
        assert row["recovered"] == pytest.approx(1, abs=0.01)
        assert abs(row["null"]) < 0.01
        assert row["changed by null"]
        assert row["resample ablation"] < row["mean ablation"] < -7.5
        assert abs(row["random perturbation"]) < 0.1
    others = [row for place, row in heads.items() if place not in ((0, 3), (1, 5))]
    assert max(abs(row["recovered"]) for row in others) < 0.01
    assert max(abs(row["null"]) for row in others) < 0.05
    assert heads[0, 3]["direct"] == pytest.approx(0, abs=0.01)
    assert heads[1, 5]["direct"] == pytest.approx(8, abs=0.05)
    assert values["decoy"] == pytest.approx([0, 1, 1, 1], abs=0.02)
    assert heads[1, 10]["direct"] == pytest.approx(0.75, abs=0.01)
    assert heads[1, 10]["mean ablation"] == pytest.approx(-0.75, abs=0.01)


@pytest.mark.slow
def test_own_task_and_study(executed: Callable[[str], NotebookNode]):
    values = read_values(executed("own_task_and_study"))
    one, every = values["verdicts"]
    assert one["status"] == "supported"
    assert one["value"] > 0.8
    assert one["control"] < 0.3
    assert every["status"] == "inconclusive"
    assert values["loss"]["model"] < 0.01 < 0.9 < values["loss"]["zero"] < 1.8 < values["loss"]["copy"]
    assert values["loss"]["exact"] == 0
    assert values["null"] == pytest.approx(0.203, abs=0.001)
    assert min(values["most"]) > 0.8
    attention, loss = (dict(enumerate(one[0])) for one in values["ablation"])  # by head of the only layer
    looking = max(attention, key=lambda head: attention[head])
    assert loss[looking] > 0.9
    assert loss[1 - looking] < 0.1
    assert "the baseline 'leak' must be causal" in read_printed(executed("own_task_and_study"))


@pytest.mark.slow
def test_paper_figures(executed: Callable[[str], NotebookNode]):
    values = read_values(executed("paper_figures"))
    assert values["latex"].startswith("\\begin{tabular}{lllll}\n\\toprule\nclaim & verdict & value & control & seeds")
    assert values["latex"].count("not tested at this scale") == len(values["status"]) == 3
    assert set(values["status"]) == {"not tested at this scale"}
    assert values["errors"]["least squares"] < 0.5 < 0.7 < values["errors"]["model"] < 1.2
    assert {"training", "loss_vs_baselines-error", "probe_and_logit_lens-affine_error"} <= set(values["figures"])
    assert values["pdf"] == "%PDF-"
    assert values["untrained"][0] == 0
    printed = read_printed(executed("paper_figures"))
    assert "@article{fu2024transformers" in printed
    assert "Mean error at each position" in printed
    plotly = [
        one
        for one in list_outputs(executed("paper_figures"))
        if "application/vnd.plotly.v1+json" in one.get("data", {})
    ]
    assert len(plotly) == 1


@pytest.mark.slow
@pytest.mark.needs_smollm2
def test_first_look_opens_a_language_model(tmp_path: Path):
    if not GGUF.exists():
        pytest.skip("make models downloads SmolLM2-135M-Instruct")
    notebook = read_notebook("first_look")
    chosen = [cell for cell in notebook.cells if cell.source.startswith("MODEL = ")]
    assert len(chosen) == 1
    chosen[0].source = chosen[0].source.replace("MODEL = folder", f"MODEL = {str(GGUF)!r}")
    notebook.cells.append(nbformat.v4.new_code_cell(VALUES["first_look"]["induction"].join(("print(", ")"))))
    execute(notebook, tmp_path)
    assert 3 <= len(json.loads(notebook.cells[-1].outputs[-1].text.replace("(", "[").replace(")", "]"))) <= 30
