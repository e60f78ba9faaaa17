"""Text formatting for the report, and escaping of external text."""

import gzip
import json
import math
from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import numpy as np

AXIS_NAMES = {
    "pos": "position",
    "step": "training step",
    "d_model": "coordinate of the residual stream",
    "d_head": "coordinate within the head",
    "d_in": "input coordinate",
    "d_out": "output coordinate",
    "kv_head": "key-value head",
    "batch": "example",
    "stat": "quantity",
    "map": "linear map",
    "eigen": "rank in the spectrum",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_dim(dim: str) -> str:
    """Return the name of an axis as it is written in a sentence.

    Args:
        dim: the name of a dimension.

    Returns:
        The name in words.

    >>> format_dim("pos"), format_dim("layer")
    ('position', 'layer')
    """
    return AXIS_NAMES.get(dim, dim.lstrip("_").replace("_", " "))


def escape_plotly(value: Any) -> str:
    """Escape text for plotly, which interprets a subset of HTML and ``%{...}`` in its labels.

    Args:
        value: any value; it is converted to text.

    Returns:
        Text that plotly displays literally.

    >>> escape_plotly("<b>bold</b> & more")
    '&lt;b&gt;bold&lt;/b&gt; &amp; more'
    """
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%&#123;")


def truncate_label(text: str, max_length: int = 26) -> str:
    """Truncate a label so that it leaves room for the plot.

    Args:
        text: the label.
        max_length: the maximum number of characters, the ellipsis included.

    Returns:
        The label, with an ellipsis if it was too long.

    >>> truncate_label("a long name", 6)
    'a lon…'
    """
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def format_number(value: Any) -> str:
    """Format a number with three significant digits, a typographic minus sign and powers of ten.

    Args:
        value: a number. None, NaN and infinities become a dash; other values are converted to text.

    Returns:
        The number as text.

    >>> format_number(0.12345), format_number(-2), format_number(3.1e-5), format_number(123456), format_number(None)
    ('0.123', '−2', '3.1 × 10⁻⁵', '123,456', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, int | float | np.number) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g} × {format_power_of_ten(int(exponent))}"
    return text.replace("-", "−")


def format_power_of_ten(exponent: int) -> str:
    """Format a power of ten.

    Args:
        exponent: the exponent.

    Returns:
        The power as text with a superscript exponent.

    >>> format_power_of_ten(-4)
    '10⁻⁴'
    """
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def format_interval(pair: Any) -> str:
    """Format an interval in square brackets.

    Args:
        pair: lower and upper end.

    Returns:
        The interval as text; empty if ``pair`` does not have two ends.

    >>> format_interval([0.1, 0.25]), format_interval(None)
    ('[0.1, 0.25]', '')
    """
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(end is None for end in pair):
        return ""
    return f"[{format_number(pair[0])}, {format_number(pair[1])}]"


def format_sentence(text: Any) -> str:
    """Capitalize the first letter and end the text with a full stop.

    Args:
        text: a phrase; None counts as empty.

    Returns:
        The sentence; empty if ``text`` is empty.

    >>> format_sentence("mean error")
    'Mean error.'
    """
    words = add_full_stop(text)
    return words[:1].upper() + words[1:]


def add_full_stop(text: Any) -> str:
    """End the text with a full stop. The first letter is not capitalized, since it may be a symbol.

    Args:
        text: a phrase; None counts as empty.

    Returns:
        The text with a full stop; empty if ``text`` is empty.

    >>> add_full_stop("u is minus the gradient")
    'u is minus the gradient.'
    """
    words = " ".join(str(text or "").split())
    return words + ("" if not words or words[-1] in ".!?" else ".")


def join_words(words: Iterable[Any]) -> str:
    """Join words with commas and a final "and".

    Args:
        words: the words; each is converted to text.

    Returns:
        The joined text.

    >>> join_words("abc")
    'a, b and c'
    """
    *rest, last = [str(one) for one in words] or [""]
    return f"{', '.join(rest)} and {last}" if rest else last


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun.

    Args:
        count: the count.
        noun: the noun in the singular, with a regular plural.

    Returns:
        Count and noun.

    >>> format_count(1, "seed"), format_count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def round_significant(values: Any, digits: int = 4) -> Any:
    """Round numbers to few significant digits, as nested lists for JSON.

    Args:
        values: an array-like of numbers.
        digits: the number of significant digits.

    Returns:
        Nested lists of the same shape. Non-finite values become None, which plotly leaves out.

    >>> round_significant(np.array([[1.23456, np.nan]]))
    [[1.235, None]]
    """
    array = np.asarray(values, dtype=float)
    cells = [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in array.ravel().tolist()]
    return np.array(cells, dtype=object).reshape(array.shape).tolist()


def encode_script_json(value: Any) -> str:
    """Encode a value as JSON that is safe inside a script element: it cannot close the element or open a comment.

    Args:
        value: a value that ``json`` can encode, without NaN or infinities.

    Returns:
        The JSON text.

    >>> encode_script_json({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def pack_text(text: str) -> str:
    """Compress a text with gzip and write the bytes in base64, for a script element that the page unpacks.

    Args:
        text: the text.

    Returns:
        The compressed bytes in base64.

    >>> len(pack_text("0.25," * 1000)) < 100
    True
    """
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()
