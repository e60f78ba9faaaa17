"""Text parts of the report: metadata of the run, the command line and the citation."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from mesascope.formulas import escape_dollars
from mesascope.report.run_tables import format_value
from mesascope.report.text import format_count

MODEL_SUMMARY_LABELS = {  # facts of a model shown at the top of the page, with their labels
    "class": "model class",
    "parameters": "parameters",
    "layers": "layers",
    "heads": "heads",
    "dtype": "dtype",
    "quantization": "quantised weights",
    "device": "device",
    "attn_implementation": "attention implementation",
}

INSPECTIONS = {  # commands that analyse models which exist, with the badge of their page
    "circuit": "circuit of a model",
    "inspect": "inspected model",
    "which-algorithm": "ranking of algorithms",
}


def get_page_title(run: Mapping[str, Any]) -> str:
    """Return the title of the page.

    Args:
        run: the contents of ``run.json``.

    Returns:
        The title of the study, else the name of the model or study, else "Run"; text with formulas.
    """
    name = str(run.get("model" if is_inspection(run) else "study") or "Run")
    return str(run.get("title") or escape_dollars(name))


def is_inspection(run: Mapping[str, Any]) -> bool:
    """Return whether the run analyses models that exist, as an inspection or a ranking, rather than those of a study.

    Args:
        run: the contents of ``run.json``.

    Returns:
        True for an inspection.
    """
    return str(run.get("study")) in INSPECTIONS


def list_badges(run: Mapping[str, Any]) -> list[str]:
    """List the short facts above the title: study, scale, number of seeds, tokens, date.

    Args:
        run: the contents of ``run.json``.

    Returns:
        The facts that are known.
    """
    text = run.get("text")
    tokens = text.get("tokens") if isinstance(text, Mapping) else None
    tokens = f"{tokens:,}" if isinstance(tokens, int) else tokens
    facts = [
        INSPECTIONS.get(str(run.get("study")), ""),
        "" if is_inspection(run) else f"study {run['study']}" if run.get("study") else "",
        f"{run['scale']} scale" if run.get("scale") else "",
        format_count(len(run["seeds"]), "seed") if isinstance(run.get("seeds"), list) and run["seeds"] else "",
        f"{tokens} tokens of {text.get('source', 'text')}" if isinstance(text, Mapping) and tokens else "",
        str(run.get("started", ""))[:10],
    ]
    return [one for one in facts if one]


def summarize_model(run: Mapping[str, Any], model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the key facts of an inspected model and its text.

    Args:
        run: the contents of ``run.json``.
        model: the contents of ``model.json``.

    Returns:
        Pairs of label and value; empty for a study.
    """
    if not is_inspection(run):
        return []
    text = run.get("text")
    text = text if isinstance(text, Mapping) else {}
    facts = {**{k: run[k] for k in ("dtype", "device", "attn_implementation") if k in run}, **model}
    rows = [
        (MODEL_SUMMARY_LABELS[name], _format_model_fact(name, facts[name]))
        for name in MODEL_SUMMARY_LABELS
        if facts.get(name) not in (None, "")
    ]
    rows += [("tokens", _format_token_count(text))] if text.get("tokens") else []
    rows += [("text", str(text["source"]))] if text.get("source") else []
    return rows


def _format_model_fact(name: str, value: Any) -> str:
    """Format a fact of a model; a parameter count in millions or billions.

    >>> _format_model_fact("parameters", 134515008), _format_model_fact("dtype", "float32")
    ('134.5 million', 'float32')
    """
    if name != "parameters" or not isinstance(value, int | float):
        return format_value(value)
    size, words = next(
        ((s, w) for s, w in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")) if value >= s), (1, "")
    )
    return f"{value / size:.4g}{words}"


def _format_token_count(text: Mapping[str, Any]) -> str:
    tokens, sequences = text["tokens"], text.get("sequences")
    count = f"{tokens:,}" if isinstance(tokens, int) else str(tokens)
    if not isinstance(sequences, int) or sequences < 2:
        return count
    return f"{count} in {format_count(sequences, 'sequence')}"


def format_command(run: Mapping[str, Any]) -> str:
    """Return the command line that reproduces the run, as recorded or reconstructed.

    Args:
        run: the contents of ``run.json``.

    Returns:
        A shell command.
    """
    if given := run.get("command"):
        return given if isinstance(given, str) else shlex.join(map(str, given))
    if is_inspection(run):
        command = str(run["study"])
        options = OPTION_LISTS[command](run)
        words = [word for name, value in options.items() if value not in (None, "") for word in (name, str(value))]
        return shlex.join(["mesascope", command, str(run.get("model", "MODEL")), *words])
    words = ["mesascope", "run", str(run.get("study", "STUDY"))]
    words += ["--scale", str(run["scale"])] if run.get("scale") else []
    words += ["--seeds", str(len(run["seeds"]))] if isinstance(run.get("seeds"), list) and run["seeds"] else []
    return shlex.join(words)


def _list_inspect_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an inspection that differ from the defaults."""
    text, given = run.get("text"), run.get("parameters")
    text = text if isinstance(text, Mapping) else {}
    given = given if isinstance(given, Mapping) else {}
    tokens, sequences = text.get("tokens"), text.get("sequences")
    tokens_per_sequence = (
        tokens // sequences if isinstance(tokens, int) and isinstance(sequences, int) and sequences else None
    )
    options = {
        "--text": text.get("file"),
        "--tokens": tokens_per_sequence,
        "--sequences": sequences,
        "--analyses": ",".join(map(str, given.get("analyses") or ())),
        "--steps": ",".join(map(str, given.get("steps") or ())),
        "--device": run.get("device") if run.get("device") != "cpu" else None,
        "--dtype": run.get("dtype") if run.get("dtype") != "float32" else None,
        "--quantize": _get_scheme(run),
        "--device-map": run.get("device_map"),
    }
    return {name: value or None for name, value in options.items()}


def _get_scheme(run: Mapping[str, Any]) -> str | None:
    """Return the name of the quantisation, if it was given by name and not as a configuration."""
    quantize = run.get("quantize")
    return quantize if isinstance(quantize, str) and quantize.isalnum() else None


def _list_circuit_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a search for a circuit that differ from the defaults."""
    pairs, given = run.get("pairs"), run.get("parameters")
    pairs = pairs if isinstance(pairs, Mapping) else {}
    given = given if isinstance(given, Mapping) else {}
    of_run = "condition" in run
    return {
        "--pairs": pairs.get("file"),
        "--condition": run.get("condition"),
        "--seed": run.get("seed"),
        "--num-pairs": pairs.get("number") if of_run else None,
        "--steps": given.get("steps"),
        "--ablation": given.get("ablation") if given.get("ablation") != "counterfactual" else None,
        "--size": given.get("size"),
        "--device": run.get("device") if run.get("device") != "cpu" else None,
        "--dtype": run.get("dtype") if not of_run and run.get("dtype") != "float32" else None,
        "--quantize": _get_scheme(run),
    }


def _list_ranking_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a ranking of algorithms that differ from the defaults."""
    given = run.get("parameters")
    given = given if isinstance(given, Mapping) else {}
    return {
        "--study": given.get("study"),
        "--token-ids": given.get("token_ids"),
        "--sequences": given.get("sequences"),
        "--seed": given.get("seed") or None,
        "--device": run.get("device") if run.get("device") != "cpu" else None,
    }


OPTION_LISTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {  # by command
    "circuit": _list_circuit_options,
    "inspect": _list_inspect_options,
    "which-algorithm": _list_ranking_options,
}


def format_citation(run: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the citation of the paper as text.

    Args:
        run: the contents of ``run.json``.

    Returns:
        Title, authors, venue, URL and BibTeX entry, or None if nothing is cited. A URL that is not http(s) is dropped.
    """
    citation = run.get("citation")
    if not isinstance(citation, Mapping):
        return None
    authors = citation.get("authors", "")
    url = str(citation.get("url") or "")
    return {
        "title": str(citation.get("title", "")),
        "authors": (", ".join(map(str, authors)) if isinstance(authors, list | tuple) else str(authors)).rstrip("."),
        "venue": ", ".join(str(citation[k]) for k in ("venue", "year") if citation.get(k)),
        "url": url if url.startswith(("https://", "http://")) else "",
        "bibtex": str(citation.get("bibtex") or ""),
    }


def get_condition_title(run: Mapping[str, Any], condition: str) -> str:
    """Return the display name of a condition of a study.

    Args:
        run: the contents of ``run.json``.
        condition: the key of the condition; empty for the study's own.

    Returns:
        The condition's ``title``, else its key.

    >>> get_condition_title({"parameters": {"text": {"title": "real text"}}}, "text")
    'real text'
    """
    given = run.get("parameters")
    parameters = given.get(condition) if isinstance(given, Mapping) else None
    return str(parameters.get("title") or condition) if isinstance(parameters, Mapping) else condition


def list_notes(run: Mapping[str, Any]) -> list[str]:
    """List the remarks that were recorded during the run.

    Args:
        run: the contents of ``run.json``.

    Returns:
        One text for each remark.
    """
    given = run.get("notes")
    return [str(one) for one in given] if isinstance(given, list | tuple) else [str(given)] if given else []
