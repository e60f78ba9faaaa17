"""Puts the page together: one file, no request to any network, nothing from outside taken for markup."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mesascope.report import run_info
from mesascope.report.explorers.combined import Gathered
from mesascope.report.explorers.head_explorer import explorer
from mesascope.report.explorers.token_view import reader
from mesascope.report.load_run import Record, Result, read
from mesascope.report.panels.choose_view import panels
from mesascope.report.panels.training import training
from mesascope.report.panels.verdicts import card, counted
from mesascope.report.plotting.figure import Panel
from mesascope.report.text import script_json, sentence, stopped
from mesascope.store import Run

SCRIPTS = ("figures.js", "square.js", "attention.js", "reader.js", "explorer.js", "start.js")
BRIEF = 16  # of more verdicts each is a line, to be opened


@dataclass(frozen=True, kw_only=True)
class Section:
    """One file of results on the page."""

    key: str
    title: str
    about: str
    tautology: str
    citation: str
    problem: str
    file: str
    shown: list[Panel]
    folded: list[Panel]


def draw(path: Path | str) -> Path:
    """Draw a run's report anew and return the file.

    Raises:
        RunError: there is no run.
    """
    run = Run.open(path)
    return run.write_text("report.html", render(run.path))


def render(run: Path) -> str:
    """The whole report of a run as the text of one HTML file.

    Args:
        run: a run directory; only ``run.json`` must be there.

    Raises:
        FileNotFoundError: it holds no ``run.json``.
        ValueError: ``run.json`` is not a JSON object.
    """
    record = read(run)
    about = record.run
    gathered = _gathered(record)
    drawn = [(k, one, _taken(one, gathered)) for k, one in enumerate(record.results)]
    return _template().render(
        title=run_info.heading(about),
        badges=run_info.badges(about),
        about=sentence(about.get("about")),
        paper=run_info.paper(about),
        brief=len(record.verdicts) > BRIEF,
        cards=[card(one) for one in record.verdicts],
        counts=[(count, card({"word": word})) for word, count in counted(record.verdicts).items()],
        inspected=run_info.is_inspection(about),
        training=[
            (run_info.setting(about, arm), panel) for arm, log in record.logs.items() if (panel := training(log))
        ],
        opened=run_info.opened(about, record.model),
        gathered=[{"key": key, "title": title, **vars(one)} for key, title, one in gathered],
        sections=[_section(k, one, taken) for k, one, taken in drawn if not _empty(one, taken)],
        command=run_info.command(about),
        parameters=[*run_info.parameters(about), *run_info.details(record.model)],
        circumstances=run_info.circumstances(about),
        timings=run_info.timings(about),
        notes=run_info.notes(about),
        problems=record.problems,
        run_name=record.path.resolve().name,
        style=Markup(_text("page.css")),
        scripts=[Markup(_plotly()), *(Markup(_text(name)) for name in SCRIPTS)],
    )


def summary(run: Path) -> dict[str, Any]:
    """The run in short, as plain values for JSON: verdicts, files of results, and what could not be read."""
    record = read(run)
    kept = ("name", "word", "sentence", "value", "interval", "control", "difference", "bound", "unit", "reason")
    return {
        "path": str(record.path),
        "study": record.run.get("study"),
        "title": run_info.heading(record.run),
        "model": record.run.get("model") if run_info.is_inspection(record.run) else None,
        "facts": dict(run_info.opened(record.run, record.model)),
        "scale": record.run.get("scale"),
        "seeds": record.run.get("seeds") or [],
        "started": record.run.get("started"),
        "seconds": run_info.total_seconds(record.run),
        "counts": counted(record.verdicts),
        "verdicts": [{k: one[k] for k in kept if k in one} for one in record.verdicts],
        "results": [_brief(one) for one in record.results if one.data is not None],
        "problems": list(record.problems),
    }


def _gathered(record: Record) -> list[tuple[str, str, Gathered]]:
    """The panels of an inspection that are made from many files, each with its key and its heading."""
    if not run_info.is_inspection(record.run):
        return []
    found = [("text", "The text, token by token", reader(record.results)), ("heads", "Heads", explorer(record.results))]
    return [(key, title, one) for key, title, one in found if one is not None]


def _taken(result: Result, gathered: Sequence[tuple[str, str, Gathered]]) -> frozenset[str]:
    """The variables of a file that stand in panels made from many files."""
    return frozenset().union(*(one.taken.get(result.file, frozenset()) for _, _, one in gathered))


def _empty(result: Result, taken: frozenset[str]) -> bool:
    """Whether all that a file holds is drawn elsewhere."""
    return result.data is not None and bool(taken) and set(map(str, result.data.data_vars)) <= taken


def _section(place: int, result: Result, taken: frozenset[str]) -> Section:
    """The panels of one file, those marked as headlines first."""
    drawn = panels(result.data, taken) if result.data is not None else []
    first = [one for one in drawn if one.headline]
    attrs = result.data.attrs if result.data is not None else {}
    return Section(
        key=f"result-{place}",
        title=result.title,
        about=sentence(attrs.get("about")),
        tautology=stopped(attrs.get("tautology")),
        citation=str(attrs.get("citation") or ""),
        problem=result.problem,
        file=f"results/{result.file}",
        shown=first or drawn,
        folded=[one for one in drawn if not one.headline] if first else [],
    )


def _brief(result: Result) -> dict[str, Any]:
    """One file of results in short."""
    data = result.data
    sizes = {str(k): int(v) for k, v in data.sizes.items()} if data is not None else {}
    variables = [str(name) for name in data.data_vars] if data is not None else []
    return {"file": f"results/{result.file}", "title": result.title, "variables": variables, "sizes": sizes}


@cache
def _template():
    """The page's template; everything is escaped unless marked as ours."""
    environment = Environment(
        loader=PackageLoader("mesascope.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = lambda value: Markup(script_json(value))
    return environment.get_template("template.html.j2")


def _text(name: str) -> str:
    """A file of ours beside this one."""
    return files("mesascope.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """The drawing library, as it ships with the plotly package."""
    return files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
