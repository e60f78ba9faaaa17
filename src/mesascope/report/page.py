"""Assembly of the report: one HTML file without network requests, in which all external text is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mesascope.checksums import RunError, seal_page
from mesascope.formulas import render_html, render_plain
from mesascope.report import run_info, run_tables
from mesascope.report.anchors import AnchorNames
from mesascope.report.explorers.combined import CombinedPanel
from mesascope.report.explorers.head_explorer import build_head_explorer
from mesascope.report.explorers.token_view import build_token_view
from mesascope.report.findings import list_findings
from mesascope.report.load_run import ResultFile, RunRecord, load_run
from mesascope.report.panels.cells import build_cell_map
from mesascope.report.panels.choose_view import build_panels
from mesascope.report.panels.training import plot_training_log
from mesascope.report.panels.verdicts import build_claim_groups, count_verdicts
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import is_uncertainty
from mesascope.report.text import add_full_stop, encode_script_json, format_sentence, pack_text
from mesascope.store import LogFn, Run, do_nothing

SCRIPTS = (
    "figures.js",
    "theme.js",
    "navigation.js",
    "download.js",
    "square.js",
    "plotly.js",
    "attention.js",
    "reader.js",
    "explorer.js",
    "graph.js",
    "start.js",
)
VERDICT_KEYS = tuple("name status statement value interval control difference threshold unit reason".split())
FIXED_IDS = frozenset(
    "main findings cells verdicts training text heads run cite dark-colours plotly text-figure heads-figure".split()
)
MAX_PLAIN_JSON = 20_000  # characters; the data of larger figures is stored compressed
MAX_EXPANDED_VERDICTS = 16  # with more verdicts, each is collapsed to one line


@dataclass(frozen=True, kw_only=True)
class Section:
    """A result file on the page.

    Attributes:
        key: the ``id`` of the HTML section.
        title: the heading; like description and tautology, a text with formulas.
        description: a description of the analysis.
        tautology: the reason why the result holds by construction; empty if it does not.
        citation: the source of the method.
        problem: the reason why the file could not be read; empty if it could.
        file: the path relative to the run directory.
        panels: the panels that are visible at once.
        folded_panels: the panels inside a collapsed element.
    """

    key: str
    title: str
    description: str
    tautology: str
    citation: str
    problem: str
    file: str
    panels: list[Panel]
    folded_panels: list[Panel]


def write_report(run_dir: Path | str, log: LogFn = do_nothing) -> Path:
    """Regenerate the report of a run.

    Args:
        run_dir: the run directory.
        log: receives one line for each file that is damaged or cannot be read.

    Returns:
        The path of the written ``report.html``.

    Raises:
        RunError: if there is no run at ``path``, or its ``run.json`` is damaged.
    """
    run, record = Run.open(run_dir), load_run(Path(run_dir))
    for problem in record.problems:
        log(problem)
    try:
        page = _render_record(record)
    except (TypeError, AttributeError, LookupError) as error:
        if run.has_checksums:
            raise
        raise RunError(
            f"{run.path} must hold the files of a run, but some have values of another kind: {type(error).__name__}: "
            f"{error}; run the study again in another directory"
        ) from error
    return run.write_text("report.html", seal_page(page, run.identity))


def render_report(run_dir: Path) -> str:
    """Render the report of a run as one self-contained HTML document.

    Args:
        run_dir: the run directory; only ``run.json`` is required.

    Returns:
        The HTML text.

    Raises:
        RunError: if ``run.json`` is missing or damaged.
    """
    return _render_record(load_run(run_dir))


def _render_record(record: RunRecord) -> str:
    return load_template("template.html.j2").render(
        **_describe_run(record),
        **_build_results(record),
        cell_map=_build_cell_map(record),
        problems=record.problems,
        run_name=record.path.resolve().name,
        dark_colours=dict(DARK_COLOURS),
        style=Markup(read_asset("page.css")),
        plotly=_pack_plotly(),
        scripts=[Markup(read_asset(name)) for name in SCRIPTS],
    )


def _build_cell_map(record: RunRecord) -> dict[str, Any] | None:
    """Return the map of verdicts over cells; None if a cell is damaged, which the problems name."""
    try:
        return build_cell_map(record.path, record.run)
    except RunError:
        return None


def _describe_run(record: RunRecord) -> dict[str, Any]:
    """Return the texts and tables that describe the run, by their names in the template."""
    run_json = record.run
    return {
        "title": run_info.get_page_title(run_json),
        "badges": run_info.list_badges(run_json),
        "description": format_sentence(run_json.get("description")),
        "paper": run_info.format_citation(run_json),
        "is_inspection": run_info.is_inspection(run_json),
        "model_summary": run_info.summarize_model(run_json, record.model),
        "command": run_info.format_command(run_json),
        "parameters": [*run_tables.tabulate_parameters(run_json), *run_tables.tabulate_model(record.model)],
        "environment": run_tables.tabulate_environment(run_json),
        "timings": run_tables.tabulate_timings(run_json),
        "notes": run_info.list_notes(run_json),
    }


def _build_results(record: RunRecord) -> dict[str, Any]:
    """Return verdicts, training curves and panels, by their names in the template."""
    combined = _build_combined_panels(record)
    used_by_result = [(one, _list_used_variables(one, combined)) for one in record.results]
    anchors = AnchorNames(FIXED_IDS)
    sections = [_build_section(one, taken, anchors) for one, taken in used_by_result if not _is_fully_used(one, taken)]
    groups = build_claim_groups(record.verdicts)
    for card in (card for group in groups for card in group["cards"]):
        card["anchor"] = anchors.add_name("claim", card["name"])
    return {
        "findings": _link_findings(record, sections, combined),
        "collapse_verdicts": len(record.verdicts) > MAX_EXPANDED_VERDICTS,
        "claim_groups": groups,
        "num_claims": sum(len(group["cards"]) for group in groups),
        "training": [
            (
                run_info.get_condition_title(record.run, condition),
                replace(panel, anchor=anchors.add_name("training", condition or "study")),
            )
            for condition, log in record.logs.items()
            if (panel := plot_training_log(log))
        ],
        "combined": [
            {"key": key, "title": title, "panel": replace(one.panel, anchor=f"{key}-figure"), "files": one.files}
            for key, title, one in combined
        ],
        "sections": sections,
    }


def _link_findings(
    record: RunRecord, sections: Sequence[Section], combined: Sequence[tuple[str, str, CombinedPanel]]
) -> list[tuple[str, str, str]]:
    """Return the findings of an inspection, each with the id and the heading of the section that shows its file."""
    if not run_info.is_inspection(record.run):
        return []
    anchors = {file: (key, title) for key, title, one in combined for file in one.used_variables}
    anchors |= {Path(one.file).name: (one.key, one.title) for one in sections}
    return [(one.text, *anchors[one.file]) for one in list_findings(record.results)]


def summarize_run(run_dir: Path) -> dict[str, Any]:
    """Summarize a run as plain values that can be written as JSON.

    Args:
        run_dir: the run directory; only ``run.json`` is required.

    Returns:
        The run's metadata, verdicts, result files (with variables and sizes), and the files that could not be read.

    Raises:
        RunError: if ``run.json`` is missing or damaged.
    """
    record = load_run(run_dir)
    return _summarize_metadata(record) | {
        "counts": count_verdicts(record.verdicts),
        "verdicts": [{k: one[k] for k in VERDICT_KEYS if k in one} for one in record.verdicts],
        "results": [_summarize_result(one) for one in record.results if one.data is not None],
        "problems": list(record.problems),
    }


def _summarize_metadata(record: RunRecord) -> dict[str, Any]:
    return {
        "path": str(record.path),
        "study": record.run.get("study"),
        "title": render_plain(run_info.get_page_title(record.run)),
        "model": record.run.get("model") if run_info.is_inspection(record.run) else None,
        "facts": dict(run_info.summarize_model(record.run, record.model)),
        "scale": record.run.get("scale"),
        "seeds": record.run.get("seeds") or [],
        "started": record.run.get("started"),
        "seconds": run_tables.sum_stage_seconds(record.run),
    }


def _build_combined_panels(record: RunRecord) -> list[tuple[str, str, CombinedPanel]]:
    """Return key, heading and panel of each panel of an inspection that combines several files."""
    if not run_info.is_inspection(record.run):
        return []
    candidates = [
        ("text", "Token view", build_token_view(record.results)),
        ("heads", "Heads", build_head_explorer(record.results)),
    ]
    return [(key, title, one) for key, title, one in candidates if one is not None]


def _list_used_variables(result: ResultFile, combined: Sequence[tuple[str, str, CombinedPanel]]) -> frozenset[str]:
    """Return the variables of a file that the combined panels already show."""
    return frozenset().union(*(one.used_variables.get(result.file, frozenset()) for _, _, one in combined))


def _is_fully_used(result: ResultFile, used: frozenset[str]) -> bool:
    """Return whether the combined panels already show every variable of a file."""
    data = result.data
    if data is None or not used:
        return False
    return {name for name in map(str, data.data_vars) if not is_uncertainty(data, name)} <= used


def _build_section(result: ResultFile, used: frozenset[str], anchors: AnchorNames) -> Section:
    key = anchors.add_name("result", Path(result.file).stem)
    panel_list = [
        replace(one, anchor=anchors.add_name(key, one.name))
        for one in (build_panels(result.data, used) if result.data is not None else [])
    ]
    headlines = [one for one in panel_list if one.headline]
    attrs = result.data.attrs if result.data is not None else {}
    return Section(
        key=key,
        title=result.title,
        description=format_sentence(attrs.get("description")),
        tautology=add_full_stop(attrs.get("tautology")),
        citation=str(attrs.get("citation") or ""),
        problem=result.problem,
        file=f"results/{result.file}",
        panels=headlines or panel_list,
        folded_panels=[one for one in panel_list if not one.headline] if headlines else [],
    )


def _summarize_result(result: ResultFile) -> dict[str, Any]:
    data = result.data
    sizes = {str(k): int(v) for k, v in data.sizes.items()} if data is not None else {}
    variables = [str(name) for name in data.data_vars] if data is not None else []
    return {"file": f"results/{result.file}", "title": result.title, "variables": variables, "sizes": sizes}


@cache
def load_template(name: str, package: str = "mesascope.report") -> Template:
    """Return a template, which escapes everything that is not marked as safe.

    Args:
        name: the file in the folder ``assets``.
        package: the package with this folder.
    """
    environment = Environment(
        loader=PackageLoader(package, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = lambda value: Markup(encode_script_json(value))
    environment.filters["data_script"] = _write_data_script
    environment.filters["typeset"] = render_html
    environment.filters["plain"] = render_plain
    return environment.get_template(name)


def read_asset(name: str, package: str = "mesascope.report") -> str:
    """Return the text of a file in the folder ``assets``.

    Args:
        name: its path in the folder.
        package: the package with this folder.
    """
    return files(package).joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _write_data_script(data: Any) -> Markup:
    """Return a script element with the data of a figure as JSON, compressed if it is long."""
    text = encode_script_json(data)
    if len(text) > MAX_PLAIN_JSON:
        return Markup(f'<script type="text/plain" data-packed>{pack_text(text)}</script>')
    return Markup(f'<script type="application/json">{text}</script>')


@cache
def _pack_plotly() -> Mapping[str, Markup]:
    """Return plotly.js with cartesian traces only, compressed and in base64, and the notice of its licence."""
    source = read_asset("plotly/plotly-cartesian.min.js")
    notice, _, _ = source.partition("*/")
    return {"notice": Markup(notice.removeprefix("/**").rstrip()), "packed": Markup(pack_text(source))}
