"""The error for a logger whose package is not installed."""


def explain_missing_package(name: str) -> ValueError:
    """Return the error for a logger whose package is not installed.

    Args:
        name: the name of the package, which is that of the extra.

    Returns:
        The error, of one line.
    """
    return ValueError(f"the logger {name} needs the package {name}, which is not installed; run pip install {name}")
