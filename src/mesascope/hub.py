"""Sharing of a run on the Hugging Face Hub."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mesascope.argument_types import validate_arguments
from mesascope.store import Run, RunError, verify_run
from mesascope.studies.cells import CELLS_FOLDER
from mesascope.studies.verdict_table import FORMULA_COLUMNS, collect_verdicts
from mesascope.table_formats import escape_markdown, format_table
from mesascope.train import CARD_HEADER

PUBLISHED_FILES = (  # of a run and of each of its cells
    "*.json",
    "report.html",
    "results/*.nc",
    "results/*.json",
    "models/**/training.json",
    "models/**/log.csv",
    "models/**/log.json",
    "models/**/step=*/*",
)
PRIVATE_FILES = ("state.safetensors",)  # the state of the optimizer, twice as large as the weights
CARD_COLUMNS = ["cell", "claim", "verdict", "value", "control"]
COMMIT_MESSAGE = "Add a run of mesascope"
_Answer = TypeVar("_Answer")


@validate_arguments
def push(run: Run | Path | str, repo: str, *, private: bool = False) -> str:
    """Push a finished run to a repository of models on the Hugging Face Hub, with the token of ``hf auth login``.

    Results, verdicts, reports, training logs and checkpoints are sent, and a card with the verdicts. The state of
    optimizers, training histories, texts and temporary files are not. Every file is verified before anything is sent.

    Args:
        run: A run, or its directory.
        repo: The name of the repository, such as ``me/affine``; it is created if needed.
        private: Create a private repository. A public one that exists already is refused.

    Returns:
        The address of the repository.

    Raises:
        RunError: If the run is not finished or a file is damaged, or the Hub refuses or cannot be reached.
        ValueError: If the name of the repository is invalid.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo must be a name such as me/affine, but got {repo[:100]!r}: {error}") from error
    opened = run if isinstance(run, Run) else Run.open(run)
    _check_finished(opened)
    files = list(_list_files(opened.path))
    operations = [CommitOperationAdd(file.relative_to(opened.path).as_posix(), file) for file in files]
    card = _format_run_card(opened, repo, files)
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi()
    address = _ask_hub(api.create_repo, repo, private=private or None, repo_type="model", exist_ok=True)
    if private and not _ask_hub(api.repo_info, repo, repo_type="model").private:
        raise RunError(f"the repository must be private, but {repo} exists and is public; choose another name")
    _ask_hub(api.create_commit, repo, operations, commit_message=COMMIT_MESSAGE, repo_type="model")
    return str(address)


def _check_finished(run: Run) -> None:
    """Raise unless the run has a report and all of its files are intact."""
    if not (run.path / "report.html").is_file():
        raise RunError(f"{run.path} must be a finished run, but has no report; finish it first")
    problems = verify_run(run.path).problems
    if problems:
        raise RunError(f"every file must be intact to be shared, but {len(problems)} are not: {problems[0]}")


def _list_files(folder: Path) -> Iterator[Path]:
    """Yield the files that are sent, of the run and of its cells."""
    for part in (folder, *sorted((folder / CELLS_FOLDER).glob("*/"))):
        found = {path for pattern in PUBLISHED_FILES for path in part.glob(pattern)}
        yield from sorted(path for path in found if path.is_file() and path.name not in PRIVATE_FILES)


def _ask_hub(call: Callable[..., _Answer], *args: Any, **options: Any) -> _Answer:
    """Call a method of the Hub; its errors become one line without the token."""
    from huggingface_hub import get_token

    try:
        return call(*args, **options)
    except Exception as error:  # of the network, of the token or of the Hub
        line = " ".join(f"{type(error).__name__}: {error}".split())
        token = get_token()
        line = line.replace(token, "***") if token else line
    raise RunError(f"the Hub must accept the run, but answered {line}; check the name, and log in with `hf auth login`")


def _format_run_card(run: Run, repo: str, files: list[Path]) -> str:
    """Return the card of a run: what it is, its verdicts, and how to open it."""
    record = run.record
    title = str(record.get("title") or record.get("study") or "A run")
    lines = [CARD_HEADER, f"# {escape_markdown(title, formulas=True)}\n"]
    if record.get("description"):
        lines.append(f"{escape_markdown(str(record['description']), formulas=True)}\n")
    facts = {"study": record.get("study"), "scale": record.get("scale"), "seeds": len(record.get("seeds") or ())}
    lines += [f"- {name}: {escape_markdown(str(value))}" for name, value in facts.items() if value]
    citation = record.get("citation")
    if isinstance(citation, dict) and citation.get("title"):
        lines.append(f"- paper: {escape_markdown(str(citation['title']))}")
    lines.append("- license: MIT (of the code)\n")
    if (run.path / "verdicts.json").exists():
        verdicts = collect_verdicts([run.path]).reindex(columns=CARD_COLUMNS)
        lines += ["## Verdicts\n", format_table(verdicts, "markdown", FORMULA_COLUMNS)]
    lines += [
        "## Opening it\n",
        "`report.html` shows everything. In Python:\n",
        "```python\nfrom huggingface_hub import snapshot_download\nimport mesascope\n",
        f'run = mesascope.Run.open(snapshot_download("{repo}"))',
        "run.result_names(), run[run.result_names()[0]]\n```\n",
    ]
    checkpoints = [file.parent.relative_to(run.path).as_posix() for file in files if file.name == "model.safetensors"]
    if checkpoints:
        last = max(checkpoints, key=lambda name: (-name.count("/"), int(name.rpartition("=")[2])))
        lines += [
            "A model (any folder with `model.safetensors`):\n",
            "```python\nimport mesascope  # registers the model classes\n"
            "from transformers import AutoModelForCausalLM\n",
            f'model = AutoModelForCausalLM.from_pretrained("{repo}", subfolder="{last}")\n```\n',
        ]
    return "\n".join(lines)
