"""Hooks of MkDocs: pages from files outside of docs/, and links that lead from page to page as in a checkout."""
# pyright: reportMissingImports=false
# MkDocs is installed by `make site` only

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = ("activations", "analyses", "circuits", "interventions", "probes", "studies")
OUTSIDE = {  # pages of the site, and the files of the repository that they are made from
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{f"packages/{name}.md": f"src/mesascope/{name}/README.md" for name in PACKAGES},
}
PAGE_OF_FILE = {source: page for page, source in OUTSIDE.items()}
FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<text>\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from files outside of docs/."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page, except in its code blocks."""
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, page: str) -> str:
    """Return a page with links to pages of the site in place of links to files of the repository.

    Args:
        markdown: the text of the page.
        page: its path in the site, such as ``studies/affine.md``.

    Returns:
        the text. A link to a file that is on no page becomes its text.
    """
    parts = FENCE.split(markdown)  # code blocks stand at odd indices
    parts[::2] = [LINK.sub(lambda link: _rewrite_link(link, page), part) for part in parts[::2]]
    return "".join(parts)


def _rewrite_link(link: re.Match[str], page: str) -> str:
    path, mark, anchor = link["target"].partition("#")
    if not path or re.match(r"\w+:", path):  # an anchor of this page, or an address
        return link[0]
    folder = PurePosixPath(OUTSIDE.get(page, f"docs/{page}")).parent
    file = os.path.normpath(folder / path)
    if (ROOT / file / "README.md").exists():
        file = f"{file}/README.md"
    target = PAGE_OF_FILE.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if target is None:
        return link["text"][1:-1] if (ROOT / file).exists() else link[0]  # MkDocs reports a link that leads nowhere
    return f"{link['text']}({os.path.relpath(target, PurePosixPath(page).parent)}{mark}{anchor})"
