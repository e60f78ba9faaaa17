"""Figures of a report as files and as values of plotly: names, values, captions, and the files themselves."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

import mesascope
from browser import CHROMIUM
from mesascope.report.export import FORMATS, collect_figures, write_figures
from mesascope.report.export._render import render_figures
from mesascope.report.export._static_panels import to_static_panel
from mesascope.report.panels.circuit_graph import draw_circuit_graph
from mesascope.report.plotting.variable import PlotVariable
from mesascope.store import RunError

HOSTILE = "</text><script>alert(1)</script><img src=x onerror=alert(2)> | *bold* %{x} & 50 %"


def write_run(path: Path, title: str = "a study", **variables: xr.DataArray) -> Path:
    (path / "results").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"study": "mine", "title": title, "seeds": [0]}))
    data = xr.Dataset(variables, attrs={"title": title, "analysis": "mine"})
    data.to_netcdf(path / "results/mine.nc", engine="netcdf4")
    return path


def title_of_axes(spec: dict) -> set[str]:
    axes = [value for key, value in spec["layout"].items() if re.fullmatch(r"[xy]axis\d*", key)]
    return {axis["title"]["text"] for axis in axes} - {""}


def test_every_figure_has_a_name_for_a_file_and_is_valid(study_run: Path, inspect_run: Path, inspection: Path):
    for run in (study_run, inspect_run, inspection):
        figures = collect_figures(run)
        names = [figure.name for figure in figures]
        assert all(re.fullmatch(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", name) for name in names)
        assert len({name.lower() for name in names}) == len(names) > 4
        assert names == [figure.name for figure in collect_figures(run)]
        for figure in figures:
            go.Figure(figure.spec)
            assert figure.spec["layout"]["width"] in (336, 672)
            assert not re.search("Hover|Click|above the plots", figure.caption)
            assert figure.title


def test_names_are_those_of_results_and_variables(study_run: Path):
    names = [figure.name for figure in collect_figures(study_run)]
    assert names[:2] == ["training", "loss_vs_baselines-error"]
    assert {"heads-worth-mean-ablation", "heads-worth-resample-ablation"} <= set(names)


def test_each_option_of_a_list_is_a_figure_of_its_values(study_run: Path):
    stored = xr.load_dataset(study_run / "results/heads.nc")["worth"]
    figures = {figure.name: figure for figure in collect_figures(study_run)}
    for label in ("mean ablation", "resample ablation"):
        figure = figures[f"heads-worth-{label.replace(' ', '-')}"]
        assert f"Shown: quantity {label}" in figure.caption
        for seed in range(3):
            expected = stored.sel(stat=label).isel(seed=seed).transpose("layer", "head").values
            np.testing.assert_allclose(figure.spec["data"][seed]["z"], expected, rtol=1e-2)


def test_a_slider_stays_at_its_first_place_which_the_caption_names(study_run: Path):
    (figure,) = (one for one in collect_figures(study_run) if one.name == "heads-similarity")
    stored = xr.load_dataset(study_run / "results/heads.nc")["similarity"].isel(step=-1, seed=0)
    np.testing.assert_allclose(figure.spec["data"][0]["z"], stored.transpose("layer", "head").values, rtol=1e-2)
    assert "Shown: training step 6000" in figure.caption


def test_attention_patterns_are_drawn_as_one_map_of_all_heads(study_run: Path):
    pattern = xr.load_dataset(study_run / "results/attention_patterns.nc")["pattern"]
    first = pattern.isel({dim: 0 for dim in ("seed", "batch") if dim in pattern.dims})
    first = first.isel(step=-1) if "step" in first.dims else first
    (figure,) = (one for one in collect_figures(study_run) if one.name == "attention_patterns-pattern")
    cells = np.array(figure.spec["data"][0]["z"], dtype=float)
    queries, keys = first.sizes["query"], first.sizes["key"]
    across = figure.spec["layout"]["xaxis"]["tickvals"]
    down = figure.spec["layout"]["yaxis"]["tickvals"]
    for layer, middle in enumerate(down):
        for head, column in enumerate(across):
            top, left = round(middle - (queries - 1) / 2), round(column - (keys - 1) / 2)
            tile = cells[top : top + queries, left : left + keys]
            expected = first.isel(layer=layer, head=head).transpose("query", "key").values
            np.testing.assert_allclose(np.nan_to_num(tile), expected, atol=1e-3)
    assert title_of_axes(figure.spec) == {"layer", "head"}


def test_coloured_text_is_drawn_as_a_map_of_the_first_example(tmp_path: Path):
    values = xr.DataArray(np.arange(12.0).reshape(2, 2, 3), dims=("layer", "batch", "pos"), attrs={"units": "nat"})
    token = xr.DataArray(np.array([["a", " b", "c"], ["d", "e", "f"]], dtype=object), dims=("batch", "pos"))
    (figure,) = collect_figures(write_run(tmp_path / "run", surprisal=values, token=token))
    assert figure.spec["data"][0]["z"] == [[0, 1, 2], [6, 7, 8]]
    assert figure.spec["layout"]["xaxis"]["ticktext"] == ["a", "␣b", "c"]
    assert figure.spec["data"][0]["colorbar"]["title"]["text"] == "nat"
    assert "The first example" in figure.caption


def test_a_circuit_is_drawn_with_its_edges_and_the_components_that_they_join():
    senders = np.array(["embedding", "L0.H1", "L0.MLP", "embedding"], dtype=object)
    receivers = np.array(["L0.H1.q", "L0.MLP", "output", "L1.H0.k"], dtype=object)
    attrs = {"circuit_size": 3, "heads_by_layer": "2,2", "kv_heads_by_layer": "1,1", "mlps_by_layer": "1,1"}
    coords = {"sender_name": ("rank", senders), "receiver_name": ("rank", receivers)}
    scores = xr.DataArray([[3.0, -2.0, 1.0, 0.5]], dims=("seed", "rank"), coords=coords, attrs=attrs)
    panel = to_static_panel(draw_circuit_graph(PlotVariable(name="score", array=scores, has_seeds=False)))
    assert panel is not None
    (plot,) = panel.data["plots"]
    assert len(plot["layout"]["shapes"]) == 3
    widths = [shape["line"]["width"] for shape in plot["layout"]["shapes"]]
    assert widths == sorted(widths)  # the strongest edge in front
    assert [name for name in plot["data"][0]["text"] if name.startswith("H")] == ["H1"]
    assert [entry["name"] for entry in panel.data["legend"]] == [
        "the counterfactual run lowers the metric",
        "raises it",
    ]


def test_points_have_a_legend_of_their_colours(tmp_path: Path):
    points = xr.DataArray(np.zeros((1, 4, 2)), dims=("layer", "batch", "component"), attrs={"view": "scatter"})
    label = xr.DataArray(np.array(["x", "<b>", "x", "y"], dtype=object), dims="batch")
    (figure,) = collect_figures(write_run(tmp_path / "run", points=points, label_kind=label))
    legend = [trace for trace in figure.spec["data"] if trace["showlegend"]]
    assert [trace["name"] for trace in legend] == ["kind: &lt;b&gt;", "kind: x", "kind: y"]
    colours = figure.spec["data"][0]["marker"]["color"]
    assert [trace["marker"]["color"] for trace in legend] == [colours[1], colours[0], colours[3]]


def test_figures_in_python_are_those_of_the_files(study_run: Path):
    figures = mesascope.figures(study_run)
    collected = collect_figures(study_run)
    assert list(figures) == [one.name for one in collected]
    for one in collected:
        figure = figures[one.name]
        assert isinstance(figure, go.Figure)
        assert figure.layout.meta == {"title": one.title, "caption": one.caption}
    assert list(mesascope.figures(mesascope.Run.open(study_run))) == list(figures)


@pytest.mark.needs_chromium
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_svg_files_are_well_formed_and_have_the_titles_of_their_axes(study_run: Path, tmp_path: Path, command):
    only = "training,loss_vs_baselines-*,attention_patterns-pattern"
    code, printed, _ = command("figures", study_run, "--format", "svg", "--out", tmp_path / "out", "--only", only)
    assert code == 0
    chosen = {one.name: one for one in collect_figures(study_run) if Path(f"{one.name}.svg") in _names(printed)}
    assert len(chosen) == 5
    for name, figure in chosen.items():
        root = ElementTree.fromstring((tmp_path / "out" / f"{name}.svg").read_bytes())
        texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert title_of_axes(figure.spec) <= texts
        assert root.get("width") == str(figure.spec["layout"]["width"])
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 3
    captions = (tmp_path / "out/captions.md").read_text(encoding="utf-8")
    assert captions.count("\n## ") == 5
    assert "## loss\\_vs" not in captions  # names of files are as they are
    assert "Mean squared error." in captions


def _names(printed: str) -> set[Path]:
    return {Path(Path(line).name) for line in printed.splitlines()}


@pytest.mark.slow
@pytest.mark.needs_chromium
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_pdf_and_png_files_begin_as_such(study_run: Path, tmp_path: Path):
    for form, signature in (("pdf", b"%PDF-"), ("png", b"\x89PNG\r\n\x1a\n")):
        (path,) = write_figures(study_run, tmp_path, form, ["loss_vs_baselines-error"])
        assert path.name == f"loss_vs_baselines-error.{form}"
        assert path.read_bytes().startswith(signature)


@pytest.mark.needs_chromium
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_a_hostile_title_is_text(tmp_path: Path):
    dims = ("seed", "layer", "stat")
    attrs = {"title": HOSTILE, "units": "<script>"}
    values = xr.DataArray(np.random.default_rng(0).random((2, 3, 2)), {"stat": [HOSTILE, "b"]}, dims, attrs=attrs)
    run = write_run(tmp_path / "run", HOSTILE, **{"a b": values})
    (path,) = write_figures(run, tmp_path / "out", "svg")
    assert path.name == "mine-a-b.svg"
    root = ElementTree.fromstring(path.read_bytes())
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "img", "image", "a", "foreignObject"}
    assert any("<script>alert(1)" in "".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))
    captions = (tmp_path / "out/captions.md").read_text(encoding="utf-8")
    assert r"\<script\>" in captions
    assert not re.search(r"(?<!\\)[<|*]", captions.replace("**", ""))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--format", "jpeg"], "a format must be one of svg, pdf, png, but got 'jpeg'"),
        (["--format", "svg", "--only", "training,nothing"], "figures must be among training, loss_vs_baselines-error"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(study_run: Path, command, words: list[str], line: str):
    before = sorted(study_run.rglob("*"))
    code, _, err = command("figures", study_run, *words)
    assert (code, err.splitlines()[-1].count(line)) == (2, 1)
    assert sorted(study_run.rglob("*")) == before


def test_a_run_without_results_has_no_figures(tmp_path: Path, command):
    (tmp_path / "run.json").write_text('{"study": "mine"}')
    code, _, err = command("figures", tmp_path)
    assert code == 2
    assert "must have results or training logs to draw" in err
    assert command("figures", tmp_path / "nowhere")[0] == 2


@pytest.mark.parametrize("form", FORMATS)
def test_without_kaleido_the_extra_is_named(study_run: Path, tmp_path: Path, monkeypatch, form: str):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RunError, match=r"need kaleido, .* run pip install 'mesascope\[figures\]'"):
        write_figures(study_run, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_without_a_browser_both_are_named(study_run: Path, tmp_path: Path, monkeypatch, command):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    code, _, err = command("figures", study_run, "--out", tmp_path / "out")
    assert code == 2
    assert "need Chrome or Chromium, but neither was found" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_plotly_the_extra_is_named(study_run: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ValueError, match=r"figures need plotly, .* run pip install 'mesascope\[figures\]'"):
        mesascope.figures(study_run)


def test_a_browser_that_cannot_start_is_named_in_one_line(monkeypatch):
    async def fail(self):
        raise RuntimeError("can't start\nnew thread")

    monkeypatch.setattr("kaleido.Kaleido.open", fail)
    spec = {"data": [], "layout": {"width": 100, "height": 100}}
    with pytest.raises(RunError, match=r"^figures as files need Chrome or Chromium, but it failed: can't start new"):
        render_figures([spec], "svg")
