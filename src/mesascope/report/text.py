"""Words and numbers for people, and the escapes that keep foreign text from becoming markup."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

WORDS = {
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
    "eigen": "place in the spectrum",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def word(dim: str) -> str:
    """What an axis is called in a sentence.

    >>> word("pos"), word("layer")
    ('position', 'layer')
    """
    return WORDS.get(dim, dim.lstrip("_").replace("_", " "))


def plain(value: Any) -> str:
    """Text that plotly shows as it stands, although plotly reads a subset of HTML in its labels.

    >>> plain("<b>bold</b> & more")
    '&lt;b&gt;bold&lt;/b&gt; &amp; more'
    """
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "%&#123;")


def clipped(text: str, most: int = 26) -> str:
    """A label that leaves room for the plot.

    >>> clipped("a long name", 6)
    'a lon…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: Any) -> str:
    """Three significant digits, with a real minus sign and powers of ten.

    >>> number(0.12345), number(-2), number(3.1e-5), number(123456), number(None)
    ('0.123', '−2', '3.1 × 10⁻⁵', '123,456', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, int | float | np.number) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g} × {superscript(int(exponent))}"
    return text.replace("-", "−")


def superscript(exponent: int) -> str:
    """A power of ten.

    >>> superscript(-4)
    '10⁻⁴'
    """
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def interval(pair: Any) -> str:
    """Two ends in square brackets, or nothing where there is none.

    >>> interval([0.1, 0.25]), interval(None)
    ('[0.1, 0.25]', '')
    """
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(end is None for end in pair):
        return ""
    return f"[{number(pair[0])}, {number(pair[1])}]"


def sentence(text: Any) -> str:
    """A capital first and a full stop last.

    >>> sentence("mean error")
    'Mean error.'
    """
    words = stopped(text)
    return words[:1].upper() + words[1:]


def stopped(text: Any) -> str:
    """A full stop last; the first letter is left alone, as it may be a symbol.

    >>> stopped("u is minus the gradient")
    'u is minus the gradient.'
    """
    words = " ".join(str(text or "").split())
    return words + ("" if not words or words[-1] in ".!?" else ".")


def listed(words: Iterable[Any]) -> str:
    """Words joined as in prose.

    >>> listed("abc")
    'a, b and c'
    """
    *rest, last = [str(one) for one in words] or [""]
    return f"{', '.join(rest)} and {last}" if rest else last


def several(count: int, noun: str) -> str:
    """A count with its noun.

    >>> several(1, "seed"), several(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def rounded(values: Any, digits: int = 4) -> Any:
    """Nested lists with few significant digits; what is not finite becomes None, which plotly leaves out.

    >>> rounded(np.array([[1.23456, np.nan]]))
    [[1.235, None]]
    """
    array = np.asarray(values, dtype=float)
    cells = [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in array.ravel().tolist()]
    return np.array(cells, dtype=object).reshape(array.shape).tolist()


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element or open a comment.

    >>> script_json({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
