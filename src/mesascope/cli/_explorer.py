"""The command that serves the live explorer: serve."""

from pathlib import Path
from typing import Annotated

import typer

from mesascope.cli._app import Device, TrustRemoteCode, app, print_line


@app.command("serve")
def serve_command(
    subject: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Hub name, folder, .gguf file or run directory.")],
    port: Annotated[int, typer.Option(help="Port on this machine; by default a free one.")] = 0,
    study: Annotated[str | None, typer.Option(help="Of a run: its study, if that is a file.")] = None,
    condition: Annotated[str | None, typer.Option(help="Of a run: condition; by default the first one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a run: training seed; by default the first one.")] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of a model: float32, bfloat16, float16 or float64.")] = "float32",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Explore one model live on a page of this machine: type a prompt, click tokens and heads. Ctrl-C ends it."""
    from mesascope.explorer.server import check_server_packages, serve_explorer

    check_server_packages()
    from mesascope import api
    from mesascope.explorer.subject import ExploredModel, open_explored_model, open_explored_run

    def open_subject() -> ExploredModel:
        chosen_device = api.choose_device(device)
        if (Path(subject) / "run.json").is_file():
            return open_explored_run(Path(subject), study, condition, seed, chosen_device)
        if study is not None or condition is not None or seed is not None:
            raise ValueError(f"study, condition and seed need the directory of a run, but {subject} is none; omit them")
        return open_explored_model(subject, chosen_device, dtype, trust_remote_code=trust_remote_code)

    def announce(address: str) -> None:
        print_line(f"Explorer: {address}\nCtrl-C ends it.")

    serve_explorer(open_subject, port, announce)
