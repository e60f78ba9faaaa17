"""Seeds trained as one program have the numbers and leave the files of seeds that are trained alone."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
import trainee
from safetensors.torch import load_file

from cases import spread
from mesascope.models.config import DecoderConfig
from mesascope.models.load import load_checkpoint
from mesascope.store import Run, RunError, verify_checkpoint
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import SGD, AdamW, LinearSchedule, TrainingConfig, TrainingDiverged, train_model, train_population
from mesascope.train._batches import sample_batch

SHORT = TrainingConfig(steps=10, batch_size=4, optimizer=AdamW(lr=1e-2), warmup=3, checkpoints=4, dtype="float64")
MOMENTUM = SGD(lr=0.02, momentum=0.9, weight_decay=0.01)
SHAPE: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
VECTORS, TOKENS = {"d_in": 1, "d_out": 1}, {"vocab_size": 5}
WHAT = {"study": "population", "scale": "smoke", "parameters": {}}
BAD = sample_batch(Affine(length=6), SHORT, 1, 5).inputs.double()


@pytest.fixture
def alone(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "alone", WHAT)


@pytest.fixture
def together(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "together", WHAT)


def decoder(**options: object) -> DecoderConfig:
    return DecoderConfig(**{**SHAPE, **({} if "vocab_size" in options else VECTORS), **options})


def gap(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((float((one[name] - two[name]).abs().max()) for name in one), default=0.0)


def assert_alike(
    one: Run, two: Run, seeds: Sequence[int], training: TrainingConfig = SHORT, most: float = 1e-9
) -> None:
    """The same files, the same columns; numbers, weights and optimiser's state differ by rounding."""
    for seed in seeds:
        logs = [run.read_log(seed) for run in (one, two)]
        assert logs[0].keys() == logs[1].keys()
        assert logs[1]["step"].tolist() == list(range(training.steps))
        assert logs[0]["learning rate"].tolist() == logs[1]["learning rate"].tolist()
        assert (logs[1]["seconds"][1:] >= logs[1]["seconds"][:-1]).all()
        for column in ("loss", "gradient norm"):
            np.testing.assert_allclose(logs[1][column], logs[0][column], rtol=most, atol=most)
        assert names(one, seed) == names(two, seed)
        for step in training.checkpoint_steps:
            places = [run.verified_checkpoint(seed, step) for run in (one, two)]
            assert (places[0] / "config.json").read_bytes() == (places[1] / "config.json").read_bytes()
            for file in ("model.safetensors", "state.safetensors"):
                assert gap(*(load_file(place / file) for place in places)) < most, (seed, step, file)
        settings = [run.seed_path(seed) / "training.json" for run in (one, two)]
        assert settings[0].read_bytes() == settings[1].read_bytes()


def names(run: Run, seed: int) -> set[str]:
    folder = run.seed_path(seed)
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


CASES = {
    "linear, momentum": (Affine(length=6), decoder(attention="linear", residual_init_scale=0.1), MOMENTUM),
    "layer norm, MLP": (Affine(length=6), decoder(norm="layer", intermediate_size=12), SGD(lr=0.02)),
    "post-norm, rotary": (
        Affine(length=6),
        decoder(norm="rms", norm_position="post", positions="rotary", num_key_value_heads=1),
        AdamW(lr=1e-2),
    ),
    "shared layers, sees all": (
        Affine(length=6),
        decoder(share_layers=True, num_hidden_layers=2, mask="context_only"),
        MOMENTUM,
    ),
    "scores set to 0, norm of what is written": (
        Affine(length=6),
        decoder(norm="layer", norm_position="output", mask="multiplicative", intermediate_size=12),
        AdamW(lr=1e-2),
    ),
    "tokens, tied": (
        MarkovChains(num_symbols=5, length=6),
        decoder(**TOKENS, tie_word_embeddings=True),
        AdamW(lr=1e-2),
    ),
    "tokens with latents": (
        SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=6),
        decoder(**TOKENS),
        AdamW(lr=1e-2),
    ),
}


@pytest.mark.parametrize("name", spread(CASES, 4))
def test_each_seed_has_the_numbers_and_the_files_of_its_own_training(
    name: str, alone: Run, together: Run, device: str
) -> None:
    task, config, optimizer = CASES[name]
    training, seeds = replace(SHORT, optimizer=optimizer, schedule=LinearSchedule(final_fraction=0.1)), (7, 0)
    for seed in seeds:
        train_model(task, config, training, seed, alone, device=device)
    last = train_population(task, config, training, seeds, together, device=device)
    assert_alike(alone, together, seeds, training)
    assert last == [together.verified_checkpoint(seed, training.steps) for seed in seeds]
    assert not torch.equal(*(load_checkpoint(place).readout.weight for place in last))


def test_clipping_is_each_seeds_own(alone: Run, together: Run, device: str) -> None:
    """At some steps the gradients of some are clipped, and those of others are not."""
    training = replace(SHORT, clip=3.0)
    for seed in (0, 1, 2):
        train_model(Affine(length=6), decoder(norm="layer"), training, seed, alone, device=device)
    train_population(Affine(length=6), decoder(norm="layer"), training, [0, 1, 2], together, device=device)
    assert_alike(alone, together, (0, 1, 2), training)
    clipped = np.array([together.read_log(seed)["gradient norm"] > 3.0 for seed in (0, 1, 2)])
    assert (clipped.any(0) & ~clipped.all(0)).any()


def test_single_precision_agrees_to_rounding(alone: Run, together: Run, device: str) -> None:
    training = replace(SHORT, dtype="float32", optimizer=MOMENTUM)
    for seed in (0, 1):
        train_model(Affine(length=6), decoder(norm="layer"), training, seed, alone, device=device)
    train_population(Affine(length=6), decoder(norm="layer"), training, [0, 1], together, device=device)
    assert_alike(alone, together, (0, 1), training, most=1e-4)
    assert load_checkpoint(together.verified_checkpoint(0, 10)).dtype == torch.float32


def test_numbers_do_not_depend_on_who_else_is_there(alone: Run, together: Run) -> None:
    train_population(Affine(length=6), decoder(), SHORT, [3], alone)
    train_population(Affine(length=6), decoder(), SHORT, [5, 3, 0, 1], together)
    assert_alike(alone, together, [3])


class Interrupt:
    """Progress that is stopped by hand once so many steps are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int, loss: float) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


@pytest.fixture
def each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told at every step."""
    for module in ("_loop", "population"):
        monkeypatch.setattr(f"mesascope.train.{module}.PROGRESS_INTERVAL", -1.0)


@pytest.mark.usefixtures("each_step")
@pytest.mark.parametrize("optimizer", spread([AdamW(lr=1e-2), MOMENTUM], 1))
def test_interrupted_and_taken_up_it_ends_bit_for_bit_where_it_would_have(
    optimizer: AdamW | SGD, alone: Run, together: Run, device: str
) -> None:
    """On a GPU, where the order of sums is not promised, up to rounding."""
    training, seeds = replace(SHORT, optimizer=optimizer), [0, 1]
    most = 1e-300 if device == "cpu" else 1e-9
    train_population(Affine(length=6), decoder(), training, seeds, alone, device=device)
    for after in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            train_population(
                *(Affine(length=6), decoder(), training, seeds, together),
                device=device,
                save_every=0.0,
                progress=Interrupt(after),
            )
        assert [verify_checkpoint(together.seed_path(seed) / "resume") for seed in seeds] == [after] * 2
    train_population(Affine(length=6), decoder(), training, seeds, together, device=device)
    assert_alike(alone, together, seeds, training, most=most)


@pytest.mark.usefixtures("each_step")
def test_either_goes_on_from_what_the_other_saved(alone: Run, together: Run, device: str) -> None:
    """Seed 0 is begun alone, seeds 1 and 2 together; seed 1 is ended alone, and 0 and 2 with a new one together."""
    task, config = Affine(length=6), decoder(norm="layer")
    for seed in range(4):
        train_model(task, config, SHORT, seed, alone, device=device)
    with pytest.raises(KeyboardInterrupt):
        train_model(task, config, SHORT, 0, together, save_every=0.0, progress=Interrupt(6), device=device)
    with pytest.raises(KeyboardInterrupt):
        train_population(task, config, SHORT, [1, 2], together, save_every=0.0, progress=Interrupt(4), device=device)
    train_model(task, config, SHORT, 1, together, device=device)
    done = {file: file.stat().st_mtime_ns for file in together.seed_path(1).rglob("step=*/*")}
    heard: list[int] = []
    train_population(
        task, config, SHORT, [0, 1, 2, 3], together, progress=lambda step, *_: heard.append(step), device=device
    )
    assert heard == [*range(1, 11), 10]  # the new one, then those behind with it: no step is taken twice
    assert_alike(alone, together, range(4))
    assert {file: file.stat().st_mtime_ns for file in together.seed_path(1).rglob("step=*/*")} == done


@pytest.mark.usefixtures("each_step")
def test_a_damaged_checkpoint_is_named_and_that_seed_alone_is_behind(alone: Run, together: Run) -> None:
    for run in (alone, together):
        train_population(Affine(length=6), decoder(), SHORT, [0, 1], run)
    weights = together.verified_checkpoint(1, 10) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=r"seed=1/step=10/model.safetensors must have .*; delete .*step=10 and run"):
        train_population(Affine(length=6), decoder(), SHORT, [0, 1], together)
    shutil.rmtree(weights.parent)
    unchanged = {file: file.stat().st_mtime_ns for file in together.seed_path(0).rglob("step=*/*")}
    train_population(Affine(length=6), decoder(), SHORT, [0, 1], together)
    assert {file: file.stat().st_mtime_ns for file in together.seed_path(0).rglob("step=*/*")} == unchanged
    assert_alike(alone, together, [0, 1])


@final
@dataclass(frozen=True, kw_only=True)
class Breaks(trainee.Blind):
    """An affine task whose loss, or the slope of it, is no number at the batch of seed 1 and step 5."""

    what: str = "loss"
    looks: bool = False  # at values, so that it cannot be vectorised

    def loss(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        error = trainee.TASK.loss(prediction, batch)
        if self.looks and not torch.equal(batch.inputs, BAD):
            return error
        hit = (batch.inputs == BAD).all()
        if self.what == "loss":
            return torch.where(hit, float("nan"), error)
        return error.detach() + torch.where(hit, 0 * error, error.square()).sqrt() - error.detach().abs()


@pytest.mark.parametrize("looks", [False, True], ids=["vectorised", "one by one"])
def test_a_seed_that_is_not_finite_is_named_and_what_was_saved_stays(looks: bool, together: Run) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"the loss became nan for seed 1 at step 5 \(the last checkpoint is step 3"
    ):
        train_population(Breaks(looks=looks), decoder(), SHORT, [0, 1], together)
    for seed in (0, 1):
        assert together.list_checkpoints(seed) == [0, 1, 3]
        assert together.read_log(seed)["step"].tolist() == [0, 1, 2, 3, 4]
    for parameter in load_checkpoint(together.verified_checkpoint(1, 3)).parameters():
        assert parameter.isfinite().all()


def test_a_gradient_that_is_not_finite_is_named(together: Run) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"the gradient norm became nan for seed 1 at step 5 \(the last checkpoint"
    ):
        train_population(Breaks(what="slope"), decoder(), SHORT, [0, 1], together)


def test_a_loss_that_cannot_be_vectorised_is_asked_seed_by_seed_and_has_the_same_numbers(
    alone: Run, together: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def counted(task: Task, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = training_loss(task, prediction, batch)
        asked.append(prediction.shape)
        return loss

    monkeypatch.setattr("mesascope.train._population_step.training_loss", counted)
    training, times = replace(SHORT, steps=5), []
    for run, looks in ((alone, False), (together, True)):
        train_population(Breaks(looks=looks), decoder(), training, [0, 2], run)
        times.append(len(asked))
    assert times == [5, 5 + 5 * 2]
    for seed in (0, 2):
        losses = [run.read_log(seed)["loss"] for run in (alone, together)]
        np.testing.assert_allclose(*losses, rtol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Whole(AdamW):
    """A rule of one's own."""


@pytest.mark.parametrize(
    ("seeds", "change", "message"),
    [
        ([], {}, r"seeds must be one or more, each given once, but got \[\]"),
        ([1, 2, 1], {}, r"each given once, but got \[1, 2, 1\]"),
        (
            [0, 1],
            {"history": True},
            r"must train without a history, .* but got history=True; train the seeds one by one",
        ),
        ([0, 1], {"optimizer": Whole()}, "must use AdamW or SGD, which update elementwise, but got Whole"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(
    seeds: list[int], change: dict, message: str, together: Run
) -> None:
    with pytest.raises(ValueError, match=message):
        train_population(trainee.TASK, decoder(), replace(SHORT, **change), seeds, together)
    assert not (together.path / "models").exists()


def test_another_recipe_in_the_same_place_is_refused_and_no_other_seed_is_begun(together: Run) -> None:
    train_model(trainee.TASK, decoder(), SHORT, 1, together)
    with pytest.raises(RunError, match=r"seed=1 must be trained with one configuration, but holds another training"):
        train_population(trainee.TASK, decoder(), replace(SHORT, clip=2.0), [0, 1], together)
    assert not together.seed_path(0).exists()
    with together.exclusive_lock("models/seed=1", wait=0.0):
        assert together.list_checkpoints(1) == [0, 1, 3, 10]


def test_nothing_global_is_touched(together: Run) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads, config = torch.get_num_threads(), decoder()
    before = config.to_dict()
    train_population(trainee.TASK, config, replace(SHORT, steps=5, threads=threads + 1), [0, 1], together)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
    assert config.to_dict() == before
