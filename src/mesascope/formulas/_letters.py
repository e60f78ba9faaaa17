"""Letters of other alphabets of mathematics, as characters: browsers draw no others."""

import unicodedata

_NAMES = {  # of the converter, and of Unicode
    "bold": "BOLD",
    "italic": "ITALIC",
    "bold-italic": "BOLD ITALIC",
    "double-struck": "DOUBLE-STRUCK",
    "script": "SCRIPT",
    "bold-script": "BOLD SCRIPT",
    "fraktur": "FRAKTUR",
    "sans-serif": "SANS-SERIF",
    "sans-serif-italic": "SANS-SERIF ITALIC",
    "monospace": "MONOSPACE",
}
_OLDER = {"FRAKTUR": "BLACK-LETTER"}  # letters that Unicode had before the alphabets have other names
_ALPHABETS = range(0x1D400, 0x1D800)  # a few letters are elsewhere


def apply_variant(text: str, variant: str) -> str:
    """Write a text in another alphabet.

    Args:
        text: letters and digits.
        variant: a value of the attribute ``mathvariant``.

    Returns:
        The text; a sign that the alphabet does not have is left as it is.

    >>> apply_variant("R", "double-struck"), apply_variant("x1", "bold")
    ('ℝ', '𝐱𝟏')
    """
    style = _NAMES.get(variant)
    return text if style is None else "".join(_find_letter(sign, style) for sign in text)


def remove_variants(text: str) -> str:
    """Return a text with common letters for bold, italic and script ones, which few fonts of terminals have.

    Args:
        text: any text.

    >>> remove_variants("𝐱ℝ𝔼")
    'xℝ𝔼'
    """
    return "".join(unicodedata.normalize("NFKC", sign) if _is_styled(sign) else sign for sign in text)


def _is_styled(sign: str) -> bool:
    return ord(sign) in _ALPHABETS and "DOUBLE-STRUCK" not in unicodedata.name(sign, "")


def _find_letter(sign: str, style: str) -> str:
    case, _, letter = unicodedata.name(sign, "").removeprefix("LATIN ").removeprefix("GREEK ").partition(" ")
    letter = letter.removeprefix("LETTER ")
    candidates = [f"MATHEMATICAL {style} {case} {letter}", f"{style} {case} {letter}"]
    candidates.append(f"{_OLDER.get(style, style)} {case} {letter}")
    for name in candidates:
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    return "ℎ" if (sign, style) == ("h", "ITALIC") else sign
