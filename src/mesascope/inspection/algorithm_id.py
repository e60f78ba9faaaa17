"""Which algorithm the models of a run, or one model, are nearest to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses import which_algorithm
from mesascope.inspection.text import ordinary
from mesascope.models.load import load_checkpoint, load_pretrained
from mesascope.store import Run
from mesascope.studies.base import Arm, Study
from mesascope.studies.registry import load, studies
from mesascope.tasks.chains import Chains
from mesascope.tasks.icl.base import InContext

DRAWN = 2**40 + 23  # the seed of the sequences; those that a study opens have another
SYMBOLS, LENGTH, FROM = 4, 64, 16  # of the chains that a language model reads
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What one model is nearest to.

    Attributes:
        setting: the setting of a study, or nothing.
        seed: of the training, or nothing.
        task: whose algorithms were held against it.
        found: as :func:`mesascope.analyses.which_algorithm` gives it.
    """

    setting: str
    seed: int | None
    task: str
    found: xr.Dataset

    @property
    def title(self) -> str:
        """What this is the answer to."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        return ", ".join(part for part in (self.setting, seed) if part)


def name_algorithms(
    subject: str, *, study: str | None, sequences: int, seed: int, device: str, say: Say = lambda line: None
) -> list[Answer]:
    """The algorithms that models are nearest to.

    Args:
        subject: a run's directory: the last checkpoint of every seed, in every setting whose task is learned in
            context; or a folder with one of our decoders; or a causal language model as :func:`load_pretrained` opens
            it, which is held against counts on Markov chains of its own tokens.
        study: whose task is meant: for a decoder in a folder, or where a run's study is a file of the user's.
        sequences: that are drawn.
        seed: of the sequences, and of the tokens that stand for symbols.
        device: where to compute.
        say: hears what is being done.

    Raises:
        ValueError: nothing that can be answered is there; one line says what would be.
    """
    if sequences < 32:
        raise ValueError(
            f"sequences must be 32 or more, to fit on one half and judge on the other, but got {sequences}"
        )
    path = Path(subject)
    if (path / "run.json").is_file():
        return list(_of_run(Run.open(path), study, sequences, seed, device, say))
    if _is_ours(path):
        arm = _setting_for(load_checkpoint(path, device), study, subject)
        return [_answer(arm, None, path, sequences, seed, device, say)]
    if study is not None:
        raise ValueError(f"--study is for a decoder in a folder or a run, but {subject} is neither; leave it out")
    say("opening the model")
    model, tokenizer = load_pretrained(subject, device=device)
    if tokenizer is None:
        raise ValueError(f"a language model must come with its tokenizer, but {subject} has none; put its files beside")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTH
    if context <= 2 * FROM:
        raise ValueError(
            f"a context must be longer than {2 * FROM} tokens to show a chain, but {subject} has {context}"
        )
    allowed = ordinary(tokenizer, model)
    drawn = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))[:SYMBOLS]
    symbols = tuple(int(token) for token in allowed[drawn])
    task = Chains(symbols=SYMBOLS, length=min(LENGTH, context), scored_from=FROM, tokens=symbols)
    words = ", ".join(repr(tokenizer.decode([token])) for token in symbols)
    return [_held("", None, model, task, sequences, seed, say, f"Markov chains of {words}")]


def _of_run(run: Run, study: str | None, sequences: int, seed: int, device: str, say: Say) -> Iterator[Answer]:
    """The answers for every setting and every seed of a run."""
    if "scale" not in run.record:
        raise ValueError(f"a run must be a study's, but {run.path} opened a language model; name the model instead")
    value = load(study or run.record["study"])
    if value.name != run.record["study"]:
        raise ValueError(f"the study must be the run's, {run.record['study']}, but got {value.name}")
    scale = run.record["scale"]
    settings = [arm for arm in value.settings if isinstance(arm.task_at(scale), InContext)]
    if not settings:
        raise ValueError(_none_in_context(f"the study {value.name}"))
    for arm in settings:
        for replicate in run.record["seeds"]:
            last = arm.setups[scale].training.steps
            here = run.of(arm.name)
            if last not in here.checkpoints(replicate):
                raise ValueError(
                    f"a run must be trained to its end, but {here.seed_path(replicate)} has no step {last}; go on with "
                    f"mesascope run {value.name} --scale {scale} --out {run.path}"
                )
            yield _answer(arm, replicate, here.checkpoint(replicate, last), sequences, seed, device, say, scale)


def _answer(
    arm: Arm,
    replicate: int | None,
    place: Path,
    sequences: int,
    seed: int,
    device: str,
    say: Say,
    scale: str = "laptop",
) -> Answer:
    """The answer for one checkpoint of a setting."""
    task = arm.task_at(scale)
    assert isinstance(task, InContext)
    model = load_checkpoint(place, device)
    return _held(arm.title or arm.name, replicate, model, task, sequences, seed, say, type(task).__name__)


def _held(
    setting: str,
    replicate: int | None,
    model: PreTrainedModel,
    task: InContext,
    sequences: int,
    seed: int,
    say: Say,
    called: str,
) -> Answer:
    """The algorithms of a task held against a model."""
    answer = Answer(setting=setting, seed=replicate, task=called, found=xr.Dataset())
    say(f"holding algorithms against the model{': ' if answer.title else ''}{answer.title}")
    batch = task.sample(sequences, torch.Generator().manual_seed(DRAWN + seed)).to(model.device)
    found = which_algorithm(model, task, batch, seed=seed)
    return Answer(setting=setting, seed=replicate, task=called, found=found)


def _is_ours(path: Path) -> bool:
    """Whether a folder holds one of our decoders."""
    config = path / "config.json"
    return config.is_file() and '"model_type": "mesascope"' in config.read_text(encoding="utf-8")


def _setting_for(model: PreTrainedModel, study: str | None, subject: str) -> Arm:
    """The setting of a study whose task a decoder can read."""
    if study is None:
        raise ValueError(f"the task of {subject} must be named by --study, one of {', '.join(_with_algorithms())}")
    value: Study = load(study)
    wanted = (model.config.vocab_size, model.config.d_in, model.config.d_out)
    settings = [arm for arm in value.settings if isinstance(arm.task, InContext)]
    if not settings:
        raise ValueError(_none_in_context(f"the study {value.name}"))
    for arm in settings:
        if (arm.model.vocab_size, arm.model.d_in, arm.model.d_out) == wanted:
            return arm
    raise ValueError(
        f"the decoder must read what the study's does (vocab_size, d_in, d_out), but {subject} has {wanted}; name "
        "another study"
    )


def _none_in_context(what: str) -> str:
    """That something has no algorithms, and what has."""
    others = ", ".join(_with_algorithms())
    return f"a task must be learned in context, but {what} has none such; studies that have: {others}"


def _with_algorithms() -> list[str]:
    """The studies one of whose tasks is learned in context."""
    return [
        entry.name for entry in studies() if any(isinstance(arm.task, InContext) for arm in load(entry.name).settings)
    ]
