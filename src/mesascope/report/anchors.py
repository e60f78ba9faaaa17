"""Names of the sections and figures of a page in its links."""

import re


class AnchorNames:
    """The ids of the elements of a page, each of which occurs once.

    An id is made from names that do not change between runs of a study, so that links to it remain valid.
    """

    def __init__(self, reserved: frozenset[str] = frozenset()) -> None:
        self._used = set(reserved)

    def add_name(self, *parts: str) -> str:
        """Return an id that is not in use yet.

        Args:
            *parts: names, from the section to its parts. Signs other than letters, digits, ``_`` and ``-`` are
                replaced.

        Returns:
            The names joined by hyphens, with a number if the id is in use already.

        >>> names = AnchorNames()
        >>> names.add_name("result", "head ablation"), names.add_name("result", "head-ablation")
        ('result-head-ablation', 'result-head-ablation-2')
        """
        base = "-".join(re.sub(r"[^\w-]+", "-", part).strip("-") or "unnamed" for part in parts)
        name, count = base, 1
        while name in self._used:
            count += 1
            name = f"{base}-{count}"
        self._used.add(name)
        return name
