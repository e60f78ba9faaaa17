"""Formulas as one line of Unicode text."""

import unicodedata
from collections.abc import Iterator, Sequence

from mesascope.formulas._letters import remove_variants
from mesascope.formulas._nodes import MathNode

_SPACED = frozenset("=<>≤≥≠≈∼≃≡≔∝∈∉⊂⊆→←↔⇒⇔↦+−±∓×·⋅*∗∘⊕⊗∧∨∩∪≪≫∣")  # operators with a space on both sides
_OPENING = frozenset("([{⟨⌊⌈ ,;")
_CLOSING = frozenset("()[]}⟩⌋⌉,;.!′/")  # not separated from a word before them
_LARGE = frozenset("∑∏∫⋃⋂∮")
_SUPERSCRIPTS = str.maketrans("0123456789+−n⊤", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿᵀ")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SMALL = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿᵀ₀₁₂₃₄₅₆₇₈₉")
_PRIMES = "′″‴⁗"
_ACCENTS = {
    "^": "\u0302",
    "~": "\u0303",
    "¯": "\u0304",
    "‾": "\u0305",
    "―": "\u0305",
    "˙": "\u0307",
    "¨": "\u0308",
    "→": "\u20d7",
}
_TRANSPARENT = ("mrow", "mstyle", "mpadded")  # rows that draw nothing themselves
_WIDE_SPACES = ("1em", "2em")


def write_plain(formula: MathNode) -> str:
    """Return a formula as text.

    Args:
        formula: a row of checked elements.
    """
    return " ".join(remove_variants(_write_row(formula.children)).split())


def _write_row(nodes: Sequence[MathNode], compact: bool = False) -> str:
    """Write elements one after the other; inside a script, without spaces around operators."""
    text, before = "", None
    parts = list(_unpack_rows(nodes))
    for index, node in enumerate(parts):
        piece = _write_node(node)
        if not piece:
            continue
        if node.tag == "mo" and piece in _SPACED:
            is_binary = text and text[-1] not in _OPENING and not compact
            text = f"{text.rstrip()} {piece} " if is_binary else text + piece
        elif piece == ",":
            text += "," if compact else ", "
        else:
            if node.tag == "mfrac" and _is_factor(parts, index):
                piece = f"({piece})"
            text += f" {piece}" if _needs_space(text, before, node, piece) else piece
        before = node
    return text


def _unpack_rows(nodes: Sequence[MathNode]) -> Iterator[MathNode]:
    for node in nodes:
        if node.tag in _TRANSPARENT:
            yield from _unpack_rows(node.children)
        elif node.tag != "mphantom":
            yield node


def _needs_space(text: str, before: MathNode | None, node: MathNode, piece: str) -> bool:
    """Return whether the text of an element would be read as a part of the text before it."""
    if before is None or text[-1] in _OPENING:
        return False
    if _is_wordlike(before):
        return piece[0] not in _CLOSING
    if text[-1].isalnum() and piece[0].isalnum():
        return _is_wordlike(node) or piece[0].isdigit() or (_ends_open(before) and text[-1] not in _SMALL)
    return text[-1] in ")]" and _is_wordlike(node)


def _is_wordlike(node: MathNode) -> bool:
    """Return whether an element is a name of several letters or a large operator, with or without scripts."""
    if node.tag in ("msub", "msup", "msubsup", "munder", "mover", "munderover"):
        return _is_wordlike(node.children[0])
    is_name = node.tag in ("mi", "mo") and len(node.text) > 1 and node.text.replace("\u2009", "").isalpha()
    return is_name or node.tag == "mtext" or (node.tag == "mo" and node.text in _LARGE)


def _ends_open(node: MathNode) -> bool:
    """Return whether a letter after an element would be read as a part of its script, root or denominator."""
    return node.tag in ("msub", "msup", "msubsup", "munder", "munderover", "msqrt", "mroot", "mfrac")


def _is_factor(nodes: Sequence[MathNode], index: int) -> bool:
    """Return whether an element stands beside another one without an operator between them."""
    before, after = (nodes[k] if 0 <= k < len(nodes) else None for k in (index - 1, index + 1))
    return _is_operand(before, ")]") or _is_operand(after, "([")


def _is_operand(node: MathNode | None, brackets: str) -> bool:
    if node is None or node.tag == "mspace":
        return False
    return node.tag != "mo" or node.text in _LARGE or node.text in (*brackets, "‖", "|")


def _write_node(node: MathNode) -> str:
    children = node.children
    match node.tag:
        case "mspace":
            return " " if dict(node.attributes).get("width") in _WIDE_SPACES else ""
        case "mfrac":
            sign = " choose " if dict(node.attributes).get("linethickness") == "0" else "/"
            return f"{_group(children[0])}{sign}{_group(children[1])}"
        case "msqrt":
            return f"√{_group(MathNode('mrow', children=children))}"
        case "mroot":
            return f"{_write_superscript('', children[1])}√{_group(children[0])}"
        case "msup":
            return _write_superscript(_group(children[0]), children[1])
        case "msub" | "munder":
            return _write_subscript(_group(children[0]), children[1])
        case "msubsup" | "munderover":
            return _write_superscript(_write_subscript(_group(children[0]), children[1]), children[2])
        case "mover":
            return _write_accent(children[0], children[1])
        case "mtable":
            return "; ".join(map(_write_node, children))
        case "mtr":
            return ", ".join(_write_row(cell.children) for cell in children)
        case "mrow" | "mstyle" | "mpadded" | "mtd":
            return _write_row(children)
        case _:
            return node.text


def _write_superscript(base: str, node: MathNode) -> str:
    script = _write_row([node], compact=True)
    if not script.strip(_PRIMES):
        return base + script
    small = script.translate(_SUPERSCRIPTS)
    return base + small if not set(small) & set(script) else f"{base}^{_enclose_script(script)}"


def _write_subscript(base: str, node: MathNode) -> str:
    script = _write_row([node], compact=True)
    return base + script.translate(_SUBSCRIPTS) if script.isdecimal() else f"{base}_{_enclose_script(script)}"


def _enclose_script(script: str) -> str:
    is_closed = script.isalnum() or len(script) == 1 or (script.startswith("(") and script.find(")") == len(script) - 1)
    return script if is_closed else f"({script})"


def _write_accent(base: MathNode, accent: MathNode) -> str:
    sign = _ACCENTS.get(accent.text)
    if sign is None:
        return _write_superscript(_group(base), accent)
    return unicodedata.normalize("NFC", "".join(character + sign for character in _write_row([base])))


def _group(node: MathNode) -> str:
    """Write an element, in parentheses if it would fall apart without them."""
    text = _write_row([node])
    is_whole = len(text) < 2 or node.tag not in (*_TRANSPARENT, "mfrac") or text.isdecimal()
    return text if is_whole else f"({text})"
