"""Figures of a report as single plotly figures with stable names, and as files with their captions."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mesascope.formulas import escape_dollars, render_plain
from mesascope.report.export._compose import compose_figure
from mesascope.report.export._render import FORMATS, render_figures
from mesascope.report.export._static_panels import to_static_panel
from mesascope.report.load_run import RunRecord, load_run
from mesascope.report.panels.choose_view import build_panels
from mesascope.report.panels.training import plot_training_log
from mesascope.report.plotting.figure import Panel
from mesascope.report.run_info import get_condition_title, get_page_title
from mesascope.report.text import format_sentence
from mesascope.store import LogFn, do_nothing, write_atomically
from mesascope.table_formats import escape_markdown

__all__ = ["CAPTIONS_FILE", "FORMATS", "ReportFigure", "collect_figures", "write_figures"]

CAPTIONS_FILE = "captions.md"
MAX_NAME_LENGTH = 100  # characters


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        name: a name of letters, digits, ``_`` and ``-``, unique in the run and the same whenever it is exported.
        title: the section of the report and the heading of the figure; text with formulas.
        caption: what the figure shows, in sentences; text with formulas.
        spec: ``data`` and ``layout`` of plotly, with size and fonts for a paper.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]


def collect_figures(run_dir: Path, log: LogFn = do_nothing) -> list[ReportFigure]:
    """Build every figure of the report of a run.

    A figure with a list of choices on the page, such as the quantity, is built once for each choice. Sliders and the
    choice of a seed stay where the page begins. The caption names all of them. Of attention patterns and coloured text,
    the first seed and the first example are drawn.

    Args:
        run_dir: the run directory.
        log: receives one line for each file that is damaged or cannot be read.

    Returns:
        The figures in the order of the report.

    Raises:
        RunError: if ``run.json`` is missing or damaged.
    """
    record = load_run(run_dir)
    for problem in record.problems:
        log(problem)
    figures: list[ReportFigure] = []
    taken: set[str] = set()
    for name, title, panel in _list_panels(record):
        for figure in _build_variants(name, title, panel):
            unique = _make_unique(figure.name, taken)
            taken.add(unique.lower())  # some file systems do not distinguish upper and lower case
            figures.append(ReportFigure(name=unique, title=figure.title, caption=figure.caption, spec=figure.spec))
    return figures


def write_figures(
    run_dir: Path, folder: Path, form: str, only: Sequence[str] | None = None, log: LogFn = do_nothing
) -> list[Path]:
    """Write figures of a report as files, and ``captions.md`` with the title and the caption of each.

    Args:
        run_dir: the run directory.
        folder: where to write; it is created if needed, and files of the same names are replaced.
        form: one of `FORMATS`.
        only: names of figures, in which ``*`` stands for any characters; all by default.
        log: receives one line for each file of the run that is damaged or cannot be read.

    Returns:
        The paths of the written figures.

    Raises:
        RunError: if there is no run, or its ``run.json`` is damaged.
        ValueError: if there is no such format or no such figure, or a figure cannot be drawn on this machine.
    """
    if form not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, but got {form!r}")
    figures = _select_figures(collect_figures(run_dir, log), only, run_dir)
    images = render_figures([figure.spec for figure in figures], form)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{figure.name}.{form}" for figure in figures]
    for path, image in zip(paths, images, strict=True):
        write_atomically(path, image)
    title = get_page_title(load_run(run_dir).run)
    write_atomically(folder / CAPTIONS_FILE, _format_captions(title, figures, form))
    return paths


def _list_panels(record: RunRecord) -> Iterator[tuple[str, str, Panel]]:
    """Yield name, title and panel of everything that is a figure, in the order of the report."""
    for condition, log in record.logs.items():
        if (panel := plot_training_log(log)) is not None:
            title = get_condition_title(record.run, condition)
            yield f"training-{condition}", f"Training: {title}" if title else "Training", panel
    for result in record.results:
        for panel in build_panels(result.data) if result.data is not None else []:
            if (static := to_static_panel(panel)) is not None:
                is_alone = panel.title == render_plain(result.title)
                title = result.title if is_alone else f"{result.title}: {escape_dollars(panel.title)}"
                yield f"{Path(result.file).stem}-{panel.name}", title, static


def _build_variants(name: str, title: str, panel: Panel) -> Iterator[ReportFigure]:
    """Yield one figure for each combination of the choices that the page offers as lists."""
    choices = panel.data.get("choices") or []
    options = [range(len(spec["options"])) if _is_expanded(spec) else [spec["selected"]] for spec in choices]
    for selection in itertools.product(*options):
        selected = [(spec, spec["options"][k]) for spec, k in zip(choices, selection, strict=True)]
        words = [name, *(_name_option(spec, option) for spec, option in selected if _is_expanded(spec))]
        chosen = ", ".join(f"{spec['name']} {option}" for spec, option in selected if len(spec["options"]) > 1)
        choice = format_sentence(f"Shown: {escape_dollars(chosen)}") if chosen else ""
        sentences = (panel.caption, choice, _format_tautology(panel))
        yield ReportFigure(
            name=format_name(words),
            title=title,
            caption=" ".join(filter(None, sentences)),
            spec=compose_figure(panel.data, selection),
        )


def _is_expanded(choice: dict[str, Any]) -> bool:
    """Return whether every option of a choice has a figure: lists of quantities, but not seeds and sliders."""
    return not choice["slider"] and choice["name"] != "seed" and len(choice["options"]) > 1


def _name_option(choice: dict[str, Any], option: str) -> str:
    """Return the part of a name that stands for an option."""
    return option if re.search("[A-Za-z]{2}", option) else f"{choice['name']}-{option}"


def _format_tautology(panel: Panel) -> str:
    return f"Holds by construction: {panel.tautology}" if panel.tautology else ""


def format_name(words: Sequence[str]) -> str:
    """Join words to a name of a file, of letters, digits, ``_`` and ``-``.

    Args:
        words: the parts of the name; empty ones are left out.

    Returns:
        The name.

    >>> format_name(["head_scores", "a < b", "", "step 10"])
    'head_scores-a-b-step-10'
    """
    parts = (re.sub("[^A-Za-z0-9_]+", "-", word).strip("-") for word in words)
    return "-".join(filter(None, parts))[:MAX_NAME_LENGTH].rstrip("-") or "figure"


def _make_unique(name: str, taken: set[str]) -> str:
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate.lower() not in taken)


def _select_figures(
    figures: Sequence[ReportFigure], only: Sequence[str] | None, run_dir: Path
) -> Sequence[ReportFigure]:
    names = [figure.name for figure in figures]
    if not names:
        raise ValueError(f"{run_dir} must have results or training logs to draw, but has none; finish the run first")
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"figures must be among {', '.join(names)}, but got {pattern!r}")
    chosen = {name for name in names if only is None or any(fnmatchcase(name, pattern) for pattern in only)}
    return [figure for figure in figures if figure.name in chosen]


def _format_captions(title: str, figures: Sequence[ReportFigure], form: str) -> str:
    """Return titles and captions as Markdown."""
    entries = []
    for figure in figures:
        heading, caption = (escape_markdown(text, formulas=True) for text in (figure.title, figure.caption))
        entries.append(f"## {figure.name}.{form}\n\n**{heading}**\n\n{caption}\n")
    return "\n".join([f"# {escape_markdown(title, formulas=True)}\n", *entries])
