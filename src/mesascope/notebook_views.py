"""Views in a notebook, as in the report: attention patterns, scores of heads, and text coloured by a quantity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mesascope.activations import Capture
from mesascope.argument_types import validate_arguments
from mesascope.inspection import TokenDecoder
from mesascope.report.explorers.attention import build_attention_browser
from mesascope.report.explorers.attention_excerpt import ExcerptLimit
from mesascope.report.explorers.colored_text import build_coloured_text
from mesascope.report.explorers.head_explorer import TOP_VARIABLES, build_head_explorer, read_grid_labels
from mesascope.report.load_run import ResultFile
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import is_numeric, prepare_variable
from mesascope.report.single_panel import render_panel

PATTERNS_HEIGHT, HEADS_HEIGHT, TEXT_HEIGHT = 720, 760, 280  # pixels
HEADS_LIMIT = ExcerptLimit(weights=150_000, source="the capture")  # 200 kB, so that a view has less than 300 kB
HEAD_AXES, REPLICATE_AXES = ("layer", "head"), ("stat", "seed", "step", "draw")


@dataclass(frozen=True, kw_only=True, repr=False)
class NotebookView:
    """A view that a notebook shows, isolated from the page of the notebook.

    Attributes:
        title: its heading.
        html: a self-contained HTML document without network requests.
        height: its height in a notebook, in pixels.
    """

    title: str
    html: str
    height: int

    def save(self, path: Path | str) -> Path:
        """Write the view as an HTML file.

        Args:
            path: the file.

        Returns:
            The path of the file.
        """
        Path(path).write_text(self.html, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        """Return the title, for a terminal."""
        return f"{self.title} (shown in a notebook; save('view.html') writes a file for a browser)"

    def _repr_html_(self) -> str:
        # the sandbox without allow-same-origin keeps scripts away from the notebook
        return (
            f'<iframe sandbox="allow-scripts" title="{escape(self.title)}" srcdoc="{escape(self.html)}" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


@validate_arguments
def show_patterns(
    acts: Capture, tokenizer: PreTrainedTokenizerBase | None = None, *, height: int = PATTERNS_HEIGHT
) -> NotebookView:
    """Show the attention patterns of all heads: a thumbnail of each, and the selected one enlarged.

    With padding, rows of queries that are padding are blank. The calls of a model that repeats its layers are shown as
    layers.

    Args:
        acts: a capture with ``pattern`` at all queries.
        tokenizer: names the tokens; positions have numbers by default.
        height: height in the notebook, in pixels.

    Returns:
        The view, which a notebook shows as the last value of a cell.

    Raises:
        NotRecorded: ``pattern`` was not recorded.
        ValueError: the capture has some queries only, or a tokenizer is given for inputs that are no tokens.

    >>> import mesascope
    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(vocab_size=50, hidden_size=8, num_attention_heads=2))
    >>> mesascope.show_patterns(mesascope.capture(model, [[5, 6, 7]], ["pattern"]))
    Attention patterns (shown in a notebook; save('view.html') writes a file for a browser)
    """
    panel = build_attention_browser(prepare_variable(_read_patterns(acts, tokenizer, "show_patterns"), "pattern"))
    return _make_view(panel, height)


@validate_arguments
def show_heads(
    scores: xr.Dataset | xr.DataArray,
    acts: Capture | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    title: str = "",
    height: int = HEADS_HEIGHT,
) -> NotebookView:
    """Show scores of all heads as a map of layers and heads, and all scores and the pattern of the selected head.

    Args:
        scores: the result of an analysis, or any numbers with the axes ``layer`` and ``head``. Of a Dataset, all such
            variables can be chosen, with their controls at the selected head, and other variables are left out. Each
            label of ``stat`` is a score of its own; ``seed`` and ``draw`` are averaged, and of ``step`` the last one is
            shown.
        acts: a capture with ``pattern`` at all queries; without one, no patterns are shown.
        tokenizer: names the tokens of the capture; positions have numbers by default.
        title: heading; that of the scores by default.
        height: height in the notebook, in pixels.

    Returns:
        The view, which a notebook shows as the last value of a cell.

    Raises:
        NotRecorded: ``pattern`` was not recorded.
        ValueError: no score has the axes, a label occurs twice, the capture has other heads than the scores or some
            queries only, or there is a tokenizer for no tokens.

    >>> import mesascope, torch, xarray
    >>> mesascope.show_heads(xarray.DataArray(torch.rand(2, 4), dims=("layer", "head"), name="induction"))
    Induction (shown in a notebook; save('view.html') writes a file for a browser)
    """
    data = _read_head_scores(scores)
    results = [ResultFile(file="scores", data=data)]
    if acts is not None:
        patterns = _read_patterns(acts, tokenizer, "show_heads")
        results.insert(0, ResultFile(file="patterns", data=_select_heads_of(data, patterns)))
    elif tokenizer is not None:
        raise ValueError("a tokenizer names the tokens of a capture, but there is none; pass acts, or no tokenizer")
    found = build_head_explorer(results, HEADS_LIMIT)
    assert found is not None  # some score has the axes
    return _make_view(replace(found.panel, title=title or _title_of(scores, "Heads")), height)


@validate_arguments
def show_text(
    tokens: Capture | Tensor,
    values: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    title: str = "",
    height: int = TEXT_HEIGHT,
) -> NotebookView:
    """Show text with every token coloured by a number; hovering shows the number.

    Args:
        tokens: token ids (batch, pos), or a capture of them.
        values: a number for each token: a DataArray with the axes ``pos``, ``batch`` (for several sequences) and up to
            one more, which becomes a slider, such as ``layer``; or a tensor or array (batch, pos). Missing values (NaN)
            are not coloured.
        tokenizer: names the tokens.
        title: heading; the name or the description of the values by default.
        height: height in the notebook, in pixels.

    Returns:
        The view, which a notebook shows as the last value of a cell.

    Raises:
        ValueError: the values do not belong to the tokens.
    """
    decoded = _decode_tokens(tokens, tokenizer)
    array = values if isinstance(values, xr.DataArray) else xr.DataArray(_to_numpy(values), dims=decoded.dims)
    array = array.expand_dims("batch") if "batch" not in array.dims else array
    others = [dim for dim in array.dims if dim not in ("batch", "pos")]
    sizes = tuple(array.sizes.get(dim) for dim in decoded.dims)
    if sizes != decoded.shape or len(others) > 1:
        raise ValueError(
            f"show_text needs values for {decoded.sizes['batch']} sequences of {decoded.sizes['pos']} positions, with "
            f"up to one more axis, but got {dict(array.sizes)}; select from the values or from the tokens"
        )
    name = str(array.name or "value")
    array = array.assign_attrs(title=title or _title_of(array, "Value"))
    panel = build_coloured_text(prepare_variable(xr.Dataset({name: array, "token": decoded}), name))
    return _make_view(panel, height)


def _read_patterns(acts: Capture, tokenizer: PreTrainedTokenizerBase | None, function: str) -> xr.Dataset:
    """Return ``pattern``, missing where queries are padding, and ``token`` if there is a tokenizer."""
    acts = acts.unrolled()
    pattern = acts.to_xarray("pattern")
    if pattern.sizes["query"] != pattern.sizes["key"]:
        raise ValueError(
            f"{function} needs the patterns of all {pattern.sizes['key']} queries, but the capture has "
            f"{pattern.sizes['query']}; call capture without queries"
        )
    if acts.attention_mask is not None:
        pattern = pattern.where(xr.DataArray(acts.attention_mask.cpu().bool(), dims=("batch", "query")))
    pattern.attrs = {"title": "Attention patterns", "units": "1", "description": "Attention weights of every head"}
    labels = {} if tokenizer is None else {"token": _decode_tokens(acts, tokenizer)}
    return xr.Dataset({"pattern": pattern} | labels)


def _read_head_scores(scores: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Return the variables with the axes of heads, and the roles of heads, if there are any."""
    if isinstance(scores, xr.DataArray):
        scores = xr.Dataset({str(scores.name or "score"): scores}, attrs=scores.attrs)
    selected = [
        name
        for name, one in scores.data_vars.items()
        if is_numeric(one) and set(HEAD_AXES) <= set(one.dims) <= {*HEAD_AXES, *REPLICATE_AXES}
    ]
    if not selected:
        found = ", ".join(f"{name} ({', '.join(map(str, one.dims))})" for name, one in scores.data_vars.items())
        raise ValueError(
            f"show_heads needs numbers with the axes {' and '.join(HEAD_AXES)}, and no others but "
            f"{', '.join(REPLICATE_AXES)}, but got {found or 'an empty Dataset'}; select from the other axes or "
            "average over them"
        )
    for dim in HEAD_AXES:
        labels = read_grid_labels(scores[selected[0]], dim)
        if len(set(labels)) < len(labels):
            raise ValueError(f"the labels of {dim} must differ, but some occur twice: {_list_some(labels)}")
    others = [name for name, one in scores.data_vars.items() if name not in selected and _belongs_to_heads(one)]
    return scores[[*selected, *others]].assign_attrs(title=scores.attrs.get("title") or "scores")


def _belongs_to_heads(array: xr.DataArray) -> bool:
    """Return whether a variable is shown with scores of heads: a control, the roles of heads, or their top tokens."""
    is_text = array.name == "role" or array.name in TOP_VARIABLES
    return set(HEAD_AXES) <= set(array.dims) and (is_text or "control_of" in array.attrs)


def _select_heads_of(scores: xr.Dataset, patterns: xr.Dataset) -> xr.Dataset:
    """Return the patterns of the heads that have scores."""
    for dim in HEAD_AXES:
        scored, recorded = read_grid_labels(scores, dim), read_grid_labels(patterns, dim)
        if not (set(scored) <= set(recorded) or set(recorded) <= set(scored)):
            raise ValueError(
                f"the capture must have the heads of the scores, but the {dim}s of the scores are "
                f"{_list_some(scored)}, and those of the capture {_list_some(recorded)}; pass a capture of their model"
            )
        patterns = patterns.isel({dim: [k for k, label in enumerate(recorded) if label in set(scored)]})
    return patterns


def _list_some(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 6 else f"{', '.join(labels[:4])}, ..., {labels[-1]}"


def _title_of(values: xr.Dataset | xr.DataArray, default: str) -> str:
    """Return the attribute ``title``, else the name, else a default."""
    name = values.name if isinstance(values, xr.DataArray) else None
    return str(values.attrs.get("title") or str(name or default).replace("_", " ").capitalize())


def _decode_tokens(tokens: Capture | Tensor, tokenizer: PreTrainedTokenizerBase) -> xr.DataArray:
    ids = tokens.inputs if isinstance(tokens, Capture) else tokens
    if ids.is_floating_point() or ids.ndim != 2:
        raise ValueError(
            f"a tokenizer names tokens (batch, pos), but the inputs have shape {tuple(ids.shape)} and dtype {ids.dtype}"
        )
    decoder = TokenDecoder(tokenizer)
    return xr.DataArray(np.array([decoder.decode_row(row) for row in ids.tolist()], object), dims=("batch", "pos"))


def _to_numpy(values: Any) -> np.ndarray:
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, float)
    if values.ndim != 2:
        raise ValueError(f"an array of values must have the axes batch and pos, but got shape {values.shape}")
    return values


def _make_view(panel: Panel, height: int) -> NotebookView:
    if height < 1:
        raise ValueError(f"height must be 1 or more pixels, but got {height}")
    return NotebookView(title=panel.title, html=render_panel(panel), height=height)
