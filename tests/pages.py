"""The code blocks of a page, and the data of the figures of a report."""

import gzip
import re
from base64 import b64decode
from pathlib import Path

DATA = re.compile(r'<script type="(?:application/json|text/plain)"( data-packed)?>(.*?)</script>', re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """What stands in a page's fences of this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def read_figure_data(html: str) -> list[str]:
    """The data of all figures of a report as JSON, in order; large data is stored compressed."""
    return [gzip.decompress(b64decode(text)).decode() if packed else text for packed, text in DATA.findall(html)]
