"""Formulas as MathML inside HTML."""

from html import escape

from mesascope.formulas._nodes import MathNode
from mesascope.formulas._plain import write_plain


def write_mathml(formula: MathNode) -> str:
    """Write a formula as an element ``math``; its text for readers without MathML is in ``alttext``.

    Args:
        formula: a row of checked elements.
    """
    content = "".join(map(_write_node, formula.children))
    return f'<math alttext="{escape(write_plain(formula))}">{content}</math>'


def _write_node(node: MathNode) -> str:
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in node.attributes)
    content = escape(node.text, quote=False) + "".join(map(_write_node, node.children))
    return f"<{node.tag}{attributes}>{content}</{node.tag}>"
