"""The application, its consoles and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mesascope import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Identify the algorithm that a transformer runs in its forward pass, and how training produces it.",
)
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

STATUS_COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "no effect": "magenta",
    "inconclusive": "yellow",
    "not learned": "cyan",
}

AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model, if you trust its author."),
]
Quantize = Annotated[
    str | None,
    typer.Option(help="Quantise the weights of linear modules: int8 or int4 (torchao), or nf4 (bitsandbytes)."),
]
TokenIdsFile = Annotated[
    Path | None,
    typer.Option(help=".npy or .safetensors file of token ids (batch, pos), for a model without a tokenizer."),
]


def _complete_study(incomplete: str) -> list[str]:
    from mesascope.studies.registry import list_studies

    return [entry.name for entry in list_studies() if entry.name.startswith(incomplete)]


StudyName = Annotated[
    str, typer.Argument(help="Name of a study, or a .py file that defines STUDY.", autocompletion=_complete_study)
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"mesascope {__version__}")
        raise typer.Exit


@app.callback()
def _main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself; the help text is that of the application."""


def print_line(text: str, console: Console = out) -> None:
    """Print a line as it is: without markup, which names and paths may look like, and without line breaks.

    Args:
        text: The line.
        console: Where to print it.
    """
    console.print(text, markup=False, soft_wrap=True)
