"""Write docs/studies/NAME.md from finished runs: ``python docs/build.py runs/affine-laptop ...`` (``make docs``)."""

import json
import sys
from pathlib import Path

PAGES = Path(__file__).parent / "studies"


def page(run: Path) -> str:
    """Question, setting, verdicts and what is ours, as Markdown."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    verdicts = json.loads((run / "verdicts.json").read_text(encoding="utf-8"))
    made = record["provenance"]
    paper = record["citation"]
    lines = [
        f"# {record['title']}",
        "",
        record["about"],
        "",
        f"{paper['authors']} ({paper['year']}). [{paper['title']}]({paper['url']}).",
        "",
        f"Run at {record['scale']} scale with {len(record['seeds'])} seeds: "
        f"`mesascope run {record['study']} --scale {record['scale']}` "
        f"(torch {made['torch']}, transformers {made['transformers']}, {made['processors']} processors).",
        "",
        "| verdict | claim | value [95 %] | control | per seed |",
        "|---|---|---|---|---|",
        *(row(one) for one in verdicts),
        "",
        *(
            f"- *{verdict['name']}*: {verdict['about']}. {verdict['source']}. {verdict['reason']}."
            for verdict in verdicts
        ),
        "",
    ]
    return "\n".join(lines)


def row(verdict: dict) -> str:
    """A verdict as a line of a table."""
    low, high = verdict["interval"] or (None, None)
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g} [{low:.3g}, {high:.3g}]"
    control = "-" if verdict["control"] is None else f"{verdict['control']:.3g}: {verdict['control_about']}"
    seeds = ", ".join("-" if number is None else f"{number:.3g}" for number in verdict["per_seed"])
    return f"| **{verdict['word']}** | {verdict['sentence']} | {value} | {control} | {seeds} |"


for name in sys.argv[1:]:
    record_of = json.loads((Path(name) / "run.json").read_text(encoding="utf-8"))
    (PAGES / f"{record_of['study']}.md").write_text(page(Path(name)), encoding="utf-8")
