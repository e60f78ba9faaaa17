"""Formulas on the pages of a run, in its tables and in its figures."""

import json
import re

import pytest
import xarray as xr

from mesascope.report import render_report, summarize_run, write_report
from mesascope.report.export import collect_figures, select_table
from mesascope.report.export.figures import _format_captions
from mesascope.report.index_page import render_index
from mesascope.studies.verdict_table import FORMULA_COLUMNS
from mesascope.table_formats import format_table
from pages import read_figure_data

MAX_GROWTH = 1.02  # of the size of a page
BROKEN = r"so $\frac{a}$"


@pytest.fixture(scope="module")
def formula_run(samples, tmp_path_factory):
    """Return a study with formulas in its texts. Tests must not change it."""
    return samples.write_formulas(tmp_path_factory.mktemp("formulas") / "run")


@pytest.fixture(scope="module")
def formula_page(formula_run) -> str:
    """Return its page."""
    return render_report(formula_run)


def remove_scripts(html: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def count_formulas(text: str) -> int:
    return len(re.findall(r"\$[^$]+\$", text.replace(r"\$", "")))


def test_formulas_of_all_fields_are_mathml(formula_page, samples):
    html = remove_scripts(formula_page)
    verdict = re.search(r'<article class="card supported".*?</article>', html, re.DOTALL)
    assert verdict is not None
    assert verdict[0].count("<math ") == sum(map(count_formulas, samples.FORMULAS.values()))
    assert "for $5 an hour" in verdict[0]
    header = html[html.index("<header>") : html.index("</header>")]
    assert header.count("<math ") == 3 + 4  # one in the title; the long formula has parts, between which lines may end
    assert "at $0;" in header
    assert '<math alttext="x_(n+1) = ax_n + b"><msub><mi>x</mi>' in header
    section = re.search(r'<section id="result-layers">.*?</section>', html, re.DOTALL)
    assert section is not None
    # heading, description; of the first panel the reason of the tautology and the caption
    assert section[0].count("<math ") == 1 + 3 * count_formulas(samples.GRADIENT)
    assert 'data-label="cosine with ∇L. u_t = −∇_z L_t with' in section[0]
    assert len(re.findall("<li><a [^>]+>Gradients <math ", html)) == 1
    assert html.count("<math") == html.count("</math>")


def test_no_dollar_sign_of_a_formula_is_left(formula_page):
    shown = re.sub(r'<math alttext="[^"]*">|<[^>]+>', "", remove_scripts(formula_page))
    assert re.findall(r"\S*\$\S*", shown) == ["$0;", "$5"]
    assert "\\" not in shown
    assert "<title>Recurrences x_(n+1) = ax_n + b</title>" in formula_page


def test_texts_of_figures_are_plain(formula_page):
    data = read_figure_data(formula_page)
    assert any("cosine with ∇L" in one for one in data)
    assert not [one for one in data if r"\nabla" in one or "$" in one]


def test_formulas_add_little_to_the_size_of_a_page(formula_page, study_run):
    assert len(formula_page) < MAX_GROWTH * len(render_report(study_run))


def test_a_formula_that_cannot_be_typeset_is_shown_as_its_source_and_named(formula_run, samples, tmp_path):
    run = samples.write_formulas(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text()) | {"description": BROKEN}
    facts["factors"] = {"heads": {"description": BROKEN, "levels": {"4": "4 heads, $5 each"}}}
    (run / "run.json").write_text(json.dumps(facts))
    rows = json.loads((run / "verdicts.json").read_text())
    rows[1]["statement"] = "<b>" + BROKEN
    (run / "verdicts.json").write_text(json.dumps(rows))
    data = xr.load_dataset(run / "results/layers.nc")
    name = next(iter(data.data_vars))
    data[name].attrs["description"] = BROKEN
    data.to_netcdf(run / "results/layers.nc", engine="netcdf4")
    problems: list[str] = []
    page = write_report(run, problems.append).read_text(encoding="utf-8")
    places = [
        "run.json: the description",
        "run.json: the description of the factor heads",
        "verdicts.json: the statement of the claim 'layer_0_copies'",
        f"results/layers.nc: the description of {name}",
    ]
    named = [one for one in problems if "formula" in one]
    assert [one.partition(": a formula must")[0] for one in named] == places
    assert all(r"but $\frac{a}$ has a command with 1 of its 2 arguments" in one for one in named)
    assert page.count(r"but $\frac{a}$ has a command") == len(places)
    assert r'<p class="lead">So $\frac{a}$.</p>' in page
    assert r"<h3>&lt;b&gt;so $\frac{a}$.</h3>" in page


def test_a_name_with_dollar_signs_is_no_formula(samples, tmp_path):
    run = samples.write_inspection(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts.pop("title", None)
    (run / "run.json").write_text(json.dumps(facts | {"model": "$x$-$y$"}))
    assert "<h1>$x$-$y$</h1>" in render_report(run)
    assert summarize_run(run)["title"] == "$x$-$y$"


def test_the_index_typesets_titles(formula_run):
    html = render_index(formula_run.parent)
    assert re.search(r'<span class="source">Recurrences <math alttext="x_\(n\+1\) = ax_n \+ b">', html)


def test_tables_for_a_paper_keep_formulas(formula_run):
    table = select_table(formula_run, "verdicts")
    latex = format_table(table, "latex", FORMULA_COLUMNS)
    assert r"With $e_n = \lVert \hat{x}_n - x_n \rVert^2$, the error falls: $e_n < 0.05 \, e_1$ for $n \geq 4$" in latex
    markdown = format_table(table, "markdown", FORMULA_COLUMNS)
    assert r"With $e_n = \lVert \hat{x}_n - x_n \rVert^2$, the error" in markdown
    assert r"\$e\_n" in format_table(table, "markdown")  # other columns hold no formulas


def test_captions_keep_formulas_and_figures_are_plain(formula_run, samples):
    figures = [one for one in collect_figures(formula_run) if one.name.startswith("layers")]
    captions = _format_captions("Run", figures, "pdf")
    assert samples.GRADIENT in captions
    assert r"**Gradients $-\nabla L$: cosine with ∇L**" in captions
    assert not [one.name for one in figures if "$" in json.dumps(one.spec)]
