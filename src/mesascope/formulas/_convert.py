"""Conversion of LaTeX to checked elements of MathML, by the package latex2mathml."""

import re
import unicodedata
from dataclasses import replace
from functools import lru_cache
from html import unescape
from typing import TYPE_CHECKING

from mesascope.formulas._letters import apply_variant
from mesascope.formulas._nodes import ROWS, TOKENS, MathNode, find_problem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_LENGTH = 400  # characters of a formula
MAX_DEPTH = 20  # of braces, and of elements
MAX_EXCERPT = 80  # of them in a message
_DEFINITION = re.compile(r"\\(?:def|newcommand|newenvironment|DeclareMathOperator)(?![A-Za-z])")
_CODE = re.compile("&#x[0-9A-Fa-f]+;")
_FENCES = frozenset("|‖∥")
_PRIMES = frozenset("′″‴⁗")
_SIGNS = frozenset("+−±∓")
_AFTER_OPERAND = frozenset(")]}⟩⌋⌉|‖!%")  # a sign after them is between two operands


class FormulaError(ValueError):
    """A formula cannot be typeset; the message names it."""


@lru_cache(maxsize=1024)
def convert_formula(source: str) -> MathNode:
    """Convert a formula.

    Args:
        source: LaTeX without dollar signs.

    Returns:
        A row of checked elements.

    Raises:
        FormulaError: the formula is invalid, or needs more than MathML Core.
    """
    problem = _find_source_problem(source)
    if not problem:
        from latex2mathml.converter import convert_to_element  # 20 ms, and most texts have no formula

        try:
            row = _build_node(convert_to_element(source)[0], MAX_DEPTH)
            formula = row if row.tag == "mrow" and not row.attributes else MathNode("mrow", children=(row,))
            if _has_content(formula):
                return formula
            problem = "is empty"
        except FormulaError as error:
            problem = str(error)
        except Exception as error:  # of many kinds, most of them without a message
            problem = f"is not complete ({_name_error(error)})"
    excerpt = "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in source)
    excerpt = excerpt if len(excerpt) <= MAX_EXCERPT else f"{excerpt[: MAX_EXCERPT - 3]}..."
    raise FormulaError(
        f"a formula must be LaTeX that can be typeset, but ${excerpt}$ {problem}; "
        r"correct it, or write \$ for a dollar sign"
    )


def _find_source_problem(source: str) -> str:
    """Return what the converter would silently accept; empty if there is nothing."""
    if len(source) > MAX_LENGTH:
        return f"has {len(source)} characters, of at most {MAX_LENGTH}"
    if definition := _DEFINITION.search(source):
        return f"defines a command by {definition[0]}"
    plain = re.sub(r"\\[^A-Za-z]", "", source)
    if "%" in plain:
        return r"has a comment, where \% is a percent sign"
    depth = 0
    for sign in plain:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0 or depth > MAX_DEPTH:
            return "has a brace } without {" if depth < 0 else f"has more than {MAX_DEPTH} braces in each other"
    return "has a brace { without }" if depth else ""


def _name_error(error: Exception) -> str:
    """Return the name of an error in words, such as ``missing end`` for MissingEndError."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()


def _build_node(element: "Element", depth: int) -> MathNode:
    """Return an element as checked nodes, at most so deep."""
    if depth < 0:
        raise FormulaError(f"has more than {MAX_DEPTH} commands in each other")
    text, attributes = unescape(element.text or ""), dict(element.attrib)
    if element.tag not in TOKENS:
        children = tuple(_build_node(child, depth - 1) for child in element)
        node = _simplify(MathNode(element.tag, attributes=tuple(attributes.items()), children=children))
    else:
        variant = attributes.pop("mathvariant", None)
        if variant is None and _CODE.fullmatch(element.text or "") and text.isascii() and text.isalpha():
            variant = "normal"  # \mathrm of one letter
        if variant == "normal":
            attributes["mathvariant"] = variant
        elif variant is not None:
            text = apply_variant(text, variant)
        node = _choose_token(element.tag, text, attributes)
    if problem := find_problem(node):
        raise FormulaError(problem)
    return node


def _simplify(node: MathNode) -> MathNode:
    """Leave out rows of one element, and join the letters of a name."""
    if node.tag not in ROWS:
        return node
    children = _flatten(list(node.children))
    if node.tag == "mrow" and not node.attributes and len(children) == 1:
        return children[0]
    return MathNode(node.tag, attributes=node.attributes, children=children)


def _flatten(children: list[MathNode]) -> tuple[MathNode, ...]:
    """Join upright letters to names, which would be read letter by letter, and mark signs."""
    joined: list[MathNode] = []
    for child in children:
        if joined and _is_upright(child) and _is_upright(joined[-1]):
            joined[-1] = replace(joined[-1], text=joined[-1].text + child.text)
        else:
            joined.append(child)
    # a name of several letters is upright by itself
    joined = [replace(one, attributes=()) if _is_upright(one) and len(one.text) > 1 else one for one in joined]
    return tuple(_mark_sign(one, before) for before, one in zip([None, *joined], joined, strict=False))


def _mark_sign(node: MathNode, before: MathNode | None) -> MathNode:
    """Write a plus or minus after an operator, such as in (-1, 1), without the spaces of a sum."""
    is_sign = node.tag == "mo" and node.text in _SIGNS
    if is_sign and before is not None and before.tag == "mo" and before.text not in _AFTER_OPERAND:
        return replace(node, attributes=(*node.attributes, ("form", "prefix")))
    return node


def _is_upright(node: MathNode) -> bool:
    return node.tag == "mi" and node.attributes == (("mathvariant", "normal"),) and node.text.isalpha()


def _choose_token(tag: str, text: str, attributes: dict[str, str]) -> MathNode:
    """Write names of functions as identifiers, primes and brackets as operators; brackets do not grow by themselves."""
    if tag == "mo" and text.replace("\u2009", "").isalpha() and text != "mod" and len(text) > 1:
        return MathNode("mi", text)
    if tag == "mi" and text == "~":  # \sim, which the converter takes for a letter
        return MathNode("mo", "∼")
    is_bracket = len(text) == 1 and unicodedata.category(text) in ("Ps", "Pe")
    tag = "mo" if tag == "mi" and (is_bracket or text in _PRIMES) else tag
    if tag == "mo" and (is_bracket or text in _FENCES):
        attributes.setdefault("stretchy", "false")
    return MathNode(tag, text, tuple(attributes.items()))


def _has_content(node: MathNode) -> bool:
    return bool(node.text.strip()) or any(map(_has_content, node.children))
