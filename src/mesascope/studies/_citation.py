"""The paper of a study."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A paper.

    Attributes:
        key: BibTeX key.
        authors: ``Last, First and Last, First``.
        title, year, venue, url: as in a bibliography.
    """

    key: str
    authors: str
    title: str
    year: int
    venue: str
    url: str

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = {
            "author": self.authors,
            "title": "{" + self.title + "}",
            "year": str(self.year),
            "journal": self.venue,
            "url": self.url,
        }
        body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
        return f"@article{{{self.key},\n{body}}}"

    @property
    def short(self) -> str:
        """Authors and year, such as ``Fu et al. 2024``.

        >>> Citation(key="", authors="A, B and C, D", title="", year=2024, venue="", url="").short
        'A & C 2024'
        """
        names = [author.split(",")[0] for author in self.authors.split(" and ")]
        return f"{names[0]} et al. {self.year}" if len(names) > 2 else f"{' & '.join(names)} {self.year}"
