"""An extension of Griffe: docstrings as Markdown, and public functions in place of the modules of the same names."""
# pyright: reportMissingImports=false
# Griffe is installed by `make site` only

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parent / "reference"
ROLE = re.compile(r":[a-z]+:`(~?)([^`]+)`")
LITERAL_BLOCK = re.compile(r"^::\n\n|(?<=:):$", re.MULTILINE)
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*)*", re.MULTILINE)
CODE = re.compile(r"(^ *```.*?^ *```$|``.+?``)", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?<!\[)`([A-Za-z_][\w.]*)`")


class MarkdownDocstrings(griffe.Extension):
    """Converts the docstrings of a package from reStructuredText to Markdown, with links to the reference."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Convert all docstrings of a package that has been read."""
        for module in list(_walk_modules(pkg)):
            _uncover_functions(module)
        documented = {path.rpartition(".")[2]: path for path in list_documented()}
        for module in _walk_modules(pkg):
            _convert_docstrings(module, documented)


def list_documented() -> list[str]:
    """Return the paths of all objects that the reference documents.

    Returns:
        such as ``mesascope.activations.Edit``, in the order of the pages.
    """
    pages = [page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md"))]
    return [path for page in pages for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]


def convert_docstring(text: str, documented: dict[str, str], own_names: frozenset[str] = frozenset()) -> str:
    """Return a docstring as Markdown.

    Args:
        text: the docstring.
        documented: the paths of documented objects, by name.
        own_names: names that mean something else in this docstring, such as its arguments.

    Returns:
        the text, with doctests in code blocks and with links to documented objects.
    """
    text = ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)
    text = LITERAL_BLOCK.sub("", text)
    text = DOCTEST.sub(lambda code: f"{code['indent']}```pycon\n{code[0]}\n{code['indent']}```", text)

    def link_name(match: re.Match[str]) -> str:
        name = match[1]
        known = documented.get(name.rpartition(".")[2] if name.startswith("mesascope.") else name)
        return match[0] if name in own_names or known is None else f"[`{name}`][{known}]"

    parts = CODE.split(text)  # code stands at odd indices
    parts[::2] = [NAME.sub(link_name, part) for part in parts[::2]]
    return "".join(parts)


def _walk_modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for member in list(module.members.values()):
        if isinstance(member, griffe.Module):
            yield from _walk_modules(member)


def _uncover_functions(module: griffe.Module) -> None:
    """Let ``mesascope.activations.capture`` be the function that this module exports, not the file that defines it."""
    for name in module.exports or ():
        member = module.members.get(str(name))
        if isinstance(member, griffe.Module) and str(name) in member.members:
            module.set_member(str(name), member.members[str(name)])


def _convert_docstrings(item: griffe.Object, documented: dict[str, str]) -> None:
    if isinstance(item, griffe.Function):
        item.overloads = None  # they help type checkers; the signature of the implementation says the same
    if item.docstring is not None:
        arguments = [one.name for one in getattr(item, "parameters", ())]
        item.docstring.value = convert_docstring(
            item.docstring.value, documented, frozenset((item.name, *arguments, *item.members))
        )
    for member in item.members.values():
        if isinstance(member, griffe.Class | griffe.Function | griffe.Attribute):
            _convert_docstrings(member, documented)
