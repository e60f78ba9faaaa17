"""Formulas as MathML inside HTML."""

from collections.abc import Iterator
from html import escape

from mesascope.formulas._nodes import MathNode
from mesascope.formulas._plain import write_plain

MAX_UNBROKEN = 24  # characters of a formula that stands on one line of a telephone
MIN_PIECE = 8  # of a part of a longer one
_BREAKING = frozenset("=<>≤≥≠≈∼≡∝∈→⇒↦+−,")  # after them, a line may end


def write_mathml(formula: MathNode) -> str:
    """Return a formula as an element ``math``; its text for readers without MathML is in ``alttext``.

    Browsers break no line inside of this element. A long formula becomes several of them.

    Args:
        formula: a row of checked elements.
    """
    return "".join(map(_write_piece, _split_row(formula)))


def _write_piece(row: MathNode) -> str:
    content = "".join(map(_write_node, row.children))
    return f'<math alttext="{escape(write_plain(row))}">{content}</math>'


def _split_row(formula: MathNode) -> Iterator[MathNode]:
    """Split a long formula after relations and signs, except after a sign that is not between two operands."""
    piece: list[MathNode] = []
    is_long = len(write_plain(formula)) > MAX_UNBROKEN
    for node in formula.children:
        piece.append(node)
        ends = len(piece) > 1 and node.tag == "mo" and node.text in _BREAKING and piece[-2].tag != "mo"
        if is_long and ends and len(write_plain(MathNode("mrow", children=tuple(piece)))) >= MIN_PIECE:
            yield MathNode("mrow", children=tuple(piece))
            piece = []
    if piece:
        yield MathNode("mrow", children=tuple(piece))


def _write_node(node: MathNode) -> str:
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in node.attributes)
    content = escape(node.text, quote=False) + "".join(map(_write_node, node.children))
    return f"<{node.tag}{attributes}>{content}</{node.tag}>"
