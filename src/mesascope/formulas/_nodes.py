"""Elements of MathML that a formula may have, checked."""

import re
import unicodedata
from dataclasses import dataclass

NUM_CHILDREN = {  # of elements with a fixed number of children
    "mfrac": 2,
    "mroot": 2,
    "msub": 2,
    "msup": 2,
    "msubsup": 3,
    "munder": 2,
    "mover": 2,
    "munderover": 3,
}
ROWS = frozenset("mrow msqrt mstyle mpadded mphantom mtable mtr mtd".split())
TOKENS = frozenset("mi mn mo mtext mspace".split())
ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth displaystyle fence form height largeop "
    "linethickness lspace mathvariant maxsize minsize movablelimits rowlines rowspacing rspace scriptlevel separator "
    "stretchy symmetric voffset width".split()
)
_VALUE = re.compile(r"[A-Za-z0-9.+% -]*")


@dataclass(frozen=True)
class MathNode:
    """An element of MathML.

    Attributes:
        tag: its name.
        text: the characters of a token.
        attributes: pairs of name and value.
        children: of other elements.
    """

    tag: str
    text: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    children: tuple["MathNode", ...] = ()


def find_problem(node: MathNode) -> str:
    """Return why an element cannot stand on a page; empty if it can.

    Args:
        node: the element. Its children have been checked.
    """
    number = len(node.children)
    if node.tag not in TOKENS | ROWS | NUM_CHILDREN.keys():
        return f"needs the element {node.tag}, which not all browsers draw"
    if node.tag in NUM_CHILDREN and number != NUM_CHILDREN[node.tag]:
        return f"has a command with {number} of its {NUM_CHILDREN[node.tag]} arguments"
    for name, value in node.attributes:
        if name not in ATTRIBUTES or not _VALUE.fullmatch(value):
            return f"sets {name}, which is not mathematics"
    if node.tag in TOKENS:
        return _find_text_problem(node)
    return ""


def _find_text_problem(node: MathNode) -> str:
    if node.text.startswith("\\"):
        return f"has the unknown command {node.text}"
    if node.tag == "mi" and node.text in ("&", "#"):
        return f"has {node.text} outside of its place"
    unseen = [sign for sign in node.text if unicodedata.category(sign).startswith("C")]
    if unseen:
        return f"has the invisible character U+{ord(unseen[0]):04X}"
    return ""
