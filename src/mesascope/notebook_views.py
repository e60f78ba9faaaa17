"""Views of a capture in a notebook: attention patterns and text coloured by a quantity, as in the report."""

from dataclasses import dataclass
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
from mesascope.report.explorers.colored_text import build_coloured_text
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import prepare_variable
from mesascope.report.single_panel import render_panel

PATTERNS_HEIGHT, TEXT_HEIGHT = 720, 280  # pixels


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
    acts = acts.unrolled()
    pattern = acts.to_xarray("pattern")
    if pattern.sizes["query"] != pattern.sizes["key"]:
        raise ValueError(
            f"show_patterns needs the patterns of all {pattern.sizes['key']} queries, but the capture has "
            f"{pattern.sizes['query']}; call capture without queries"
        )
    if acts.attention_mask is not None:
        pattern = pattern.where(xr.DataArray(acts.attention_mask.cpu().bool(), dims=("batch", "query")))
    pattern.attrs = {"title": "Attention patterns", "units": "1", "description": "Attention weights of every head"}
    labels = {} if tokenizer is None else {"token": _decode_tokens(acts, tokenizer)}
    panel = build_attention_browser(prepare_variable(xr.Dataset({"pattern": pattern} | labels), "pattern"))
    return _make_view(panel, height)


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
    array = array.assign_attrs(title=title or array.attrs.get("title") or name.replace("_", " ").capitalize())
    panel = build_coloured_text(prepare_variable(xr.Dataset({name: array, "token": decoded}), name))
    return _make_view(panel, height)


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
