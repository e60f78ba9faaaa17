"""The code blocks of a page."""

import re
from pathlib import Path


def blocks(page: Path, language: str) -> list[str]:
    """What stands in a page's fences of this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
