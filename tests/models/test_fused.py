"""The compiled sublayer is the plain one but for rounding, both ways, and gives way where it does not fit."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cases import spread
from mesascope.models import _fused_kernel as kernels
from mesascope.models import fused as module
from mesascope.models.fused import FUSED_ATTENTION, KernelSize, fused_attention, load_kernel, run_fused_sublayer
from mesascope.models.layers import DecoderBlock
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.studies import registry
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch, Task
from mesascope.train import AdamW, TrainingConfig, limit_threads
from mesascope.train._batches import sample_batch
from mesascope.train._checkpoints import initialise_training
from mesascope.train._step import TrainingDiverged, run_training_step

SHAPE = {"d_in": 1, "d_out": 1, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "norm": "layer"}


@pytest.fixture
def afresh(tmp_path, monkeypatch):
    """No kernel is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_kernel.cache_clear()
    yield tmp_path / "cache" / "mesascope"
    load_kernel.cache_clear()


def size(length: int, *, heads: int = 4, d_head: int = 8, norm: int = 1) -> KernelSize:
    return KernelSize(H=heads, D=d_head, L=length, NORM=norm)


def compiled(length: int) -> None:
    """Skip where it cannot be."""
    if load_kernel(size(length)) is None:
        pytest.skip("there is no C++ compiler here")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block_of(heads: int, d_head: int, norm: str = "layer", position: str = "pre", sharp: float = 1.0) -> DecoderBlock:
    """A block of attention alone with no parameter at rest."""
    width = heads * d_head
    config = DecoderConfig(
        d_in=1, d_out=1, hidden_size=width, num_attention_heads=heads, norm=norm, norm_position=position
    )
    config._attn_implementation_internal = "eager"
    block = DecoderBlock(config, 0)
    for number, (name, parameter) in enumerate(block.named_parameters()):
        spread = sharp if "q_proj" in name or "k_proj" in name else 1.0
        noise = random(*parameter.shape, seed=100 + number) * (width**-0.5 if parameter.ndim == 2 else 0.5)
        parameter.data = noise * spread + (1.0 if "norm.weight" in name else 0.0)
    return block


def passes(block: DecoderBlock, x: torch.Tensor, given: torch.Tensor, how: str) -> dict[str, torch.Tensor]:
    """Output and gradients, in double precision, by the plain path, or by the kernel."""
    dtype = torch.float64 if how == "exact" else torch.float32
    block, x = copy.deepcopy(block).to(dtype), x.detach().to(dtype).requires_grad_()
    length = x.shape[1]
    mask = torch.full((1, 1, length, length), -torch.inf, dtype=dtype).triu(1)
    if how == "kernel":
        block.attention.config._attn_implementation_internal = FUSED_ATTENTION
    y = block(x, mask, torch.arange(length)[None])
    y.backward(given.to(dtype))
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y.detach(), "x": x.grad} | gradients


def assert_as_exact_as_the_plain_path(block: DecoderBlock, x: torch.Tensor, given: torch.Tensor) -> None:
    """Next to double precision, it errs no more than twice as much as the plain path, but for a few roundings.

    Errors are root mean squares: a sharp softmax makes the largest one of a few a matter of chance. The bias of keys
    changes no softmax, so that its gradient is nothing but rounding: it is held against that of queries.
    """
    exact, plain, ours = (passes(block, x, given, how) for how in ("exact", "plain", "kernel"))
    assert exact.keys() == ours.keys()
    for name, right in exact.items():
        scale = exact["attention.q_proj.bias"] if name == "attention.k_proj.bias" else right
        rounding = torch.finfo(torch.float32).eps * scale.abs().max()
        ours_errs, plain_errs = ((found[name] - right).square().mean().sqrt() for found in (ours, plain))
        assert ours_errs <= 2 * plain_errs + 8 * rounding, name


SIZES = [(1, 8, 1), (4, 8, 7), (3, 24, 33), (4, 16, 8), (4, 16, 20), (2, 16, 21), (1, 64, 64), (4, 64, 12)]


@pytest.mark.parametrize(("heads", "d_head", "length"), spread(SIZES, 4))  # each is compiled, for seconds
@pytest.mark.parametrize("sharp", [1.0, 5.0, 30.0], ids=["soft", "sharp", "nearly one key alone"])
def test_it_is_the_plain_path_forward_and_backward(heads, d_head, length, sharp):
    compiled(length)
    x, given = (random(11, length, heads * d_head, seed=n) for n in (1, 2))
    assert_as_exact_as_the_plain_path(block_of(heads, d_head, sharp=sharp), x, given)


@pytest.mark.parametrize(
    ("norm", "position"), [("none", "pre"), ("rms", "pre"), ("layer", "post"), ("rms", "post")], ids=str
)
def test_every_norm_is_what_it_is(norm, position):
    compiled(20)
    x, given = (random(3, 20, 32, seed=n) + 0.7 for n in (1, 2))
    assert_as_exact_as_the_plain_path(block_of(4, 8, norm, position), x, given)


@pytest.mark.parametrize("batch", [1, 7, 8, 30])
def test_every_sequence_counts_once(batch):
    compiled(7)
    x, given = (random(batch, 7, 32, seed=n) for n in (1, 2))
    assert_as_exact_as_the_plain_path(block_of(4, 8), x, given)


def test_the_stream_may_lie_in_memory_as_it_likes():
    compiled(12)
    x, given = (random(32, 12, 2, seed=n).permute(2, 1, 0) for n in (1, 2))
    assert_as_exact_as_the_plain_path(block_of(4, 8), x, given)


def attended(x: torch.Tensor) -> torch.Tensor:
    """By the kernel."""
    return run_fused_sublayer(block_of(4, 8), x).detach()


def test_nothing_comes_from_what_is_later():
    compiled(20)
    x = random(2, 20, 32)
    before = attended(x)
    x[:, 11:] = 1e3 * random(2, 9, 32, seed=1)
    after = attended(x)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("place", [0, 5, 19])
def test_what_is_no_number_spoils_what_it_spoils_on_the_plain_path(bad, norm, place):
    """All positions of its sequence and all gradients: 0 times no number is none. Other sequences stay as they are."""
    compiled(20)
    block, given = block_of(4, 8, norm), random(3, 20, 32, seed=1)
    x = random(3, 20, 32)
    x[1, place, 3] = bad
    plain, ours = (passes(block, x, given, how) for how in ("plain", "kernel"))
    for name, expected in plain.items():
        assert torch.equal(expected.isfinite(), ours[name].isfinite()), name
    assert not ours["y"][1].isfinite().any()
    assert ours["y"][::2].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["attention.k_proj.bias", "attention.v_proj.weight", "attention.q_proj.weight"])
def test_a_weight_that_is_no_number_spoils_the_same(bad, name):
    compiled(20)
    block, x, given = block_of(4, 8), random(2, 20, 32), random(2, 20, 32, seed=1)
    block.get_parameter(name).data.view(-1)[3] = bad
    plain, ours = (passes(block, x, given, how) for how in ("plain", "kernel"))
    assert torch.equal(plain["y"].isfinite(), ours["y"].isfinite())
    assert not ours["y"].isfinite().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_gradient_that_is_no_number_spoils_the_same(bad):
    compiled(20)
    block, x, given = block_of(4, 8), random(3, 20, 32), random(3, 20, 32, seed=1)
    given[1, 5, 3] = bad
    plain, ours = (passes(block, x, given, how) for how in ("plain", "kernel"))
    for name, expected in plain.items():
        assert torch.equal(expected.isfinite(), ours[name].isfinite()), name
    assert not ours["x"][1].isfinite().any()


class LastTermLost(Affine):
    """The affine task whose last term, which no loss reads as an input, is no number from some sequence on."""

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        batch = super().sample(n, generator)
        inputs = batch.inputs.clone()
        inputs[16 * 5 + 3, -1] = torch.nan  # in the batch of step 5
        weight = batch.weight.clone()
        weight[:, -1] = 0.0
        return replace(batch, inputs=inputs, weight=weight)


@pytest.mark.parametrize("path", ["kernel", "plain"])
def test_training_stops_at_the_same_step_on_either_path(path, monkeypatch):
    compiled(9)
    if path == "plain":
        monkeypatch.setattr(module, "load_kernel", lambda size: None)
    training = TrainingConfig(steps=12, batch_size=16, optimizer=AdamW(lr=1e-2))
    task = LastTermLost(length=9)
    model, optimizer, _ = initialise_training(DecoderConfig(**SHAPE), training, 0, None, "cpu")
    for step in range(5):
        run_training_step(model, optimizer, task, sample_batch(task, training, 0, step), training, step, "here")
    with pytest.raises(TrainingDiverged, match="the loss became nan for here"):
        run_training_step(model, optimizer, task, sample_batch(task, training, 0, 5), training, 5, "here")


def test_no_weight_is_below_the_normal_range():
    """A processor takes a hundred times as long for such numbers, and sharp heads are full of them."""
    compiled(20)
    x = random(4, 20, 32)
    y = run_fused_sublayer(block_of(4, 8, sharp=6.0), x.requires_grad_())
    seen = torch.ones(20, 20, dtype=torch.bool).tril()
    weights = y.grad_fn.saved_tensors[6][..., :20].where(seen, 0.0)
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    assert not ((weights != 0) & (weights < torch.finfo(torch.float32).tiny)).any()
    assert (weights[..., seen] == 0).any()  # such a weight would have come up


def test_smallest_numbers_stay_what_they_are():
    compiled(20)
    assert float(torch.tensor(1e-40) * 1.0) > 0  # some flags let a library set them to zero for everybody


@pytest.mark.parametrize(
    ("other", "length"),
    [
        ({"attention": "linear"}, 6),
        ({"mask": "full"}, 6),
        ({"mask": "multiplicative"}, 6),
        ({"norm_position": "output"}, 6),
        ({"hidden_size": 16}, 6),
        ({"num_key_value_heads": 2}, 6),
        ({"positions": "rotary"}, 6),
        ({"hidden_size": 288}, 6),
        ({}, 65),
    ],
    ids=str,
)
def test_it_gives_way_where_it_does_not_fit(other, length):
    compiled(6)
    model = Decoder(DecoderConfig(**{**SHAPE, **other}))
    with fused_attention(model, length) as does:
        assert not does
        assert model.config._attn_implementation == "eager"


def test_it_gives_way_in_double_precision():
    with fused_attention(Decoder(DecoderConfig(**SHAPE)).double(), 6) as does:
        assert not does


def test_it_is_for_training_alone():
    compiled(6)
    model = Decoder(DecoderConfig(**SHAPE))
    with fused_attention(model, 6) as does:
        assert does
        assert model.config._attn_implementation == FUSED_ATTENTION
    assert model.config._attn_implementation == "eager"


def test_who_listens_hears_the_plain_path():
    compiled(6)
    model, heard = Decoder(DecoderConfig(**SHAPE)), []
    hook = model.layers[0].attention.q_proj.register_forward_hook(lambda *_: heard.append(1))
    with fused_attention(model, 6) as does:
        assert not does
        model(random(1, 6, 1))
    assert heard
    hook.remove()
    with fused_attention(model, 6) as does:
        assert does


def trained(
    steps: int = 12,
    task: Task | None = None,
    config: DecoderConfig | None = None,
    training: TrainingConfig | None = None,
) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and weights of a short training."""
    task, config = task or Affine(length=9), config or DecoderConfig(**SHAPE)
    training = training or TrainingConfig(steps=steps, batch_size=16, optimizer=AdamW(lr=1e-2))
    model, optimizer, _ = initialise_training(config, training, 0, None, "cpu")
    losses = [
        run_training_step(model, optimizer, task, sample_batch(task, training, 0, step), training, step, "here")[0]
        for step in range(steps)
    ]
    return losses, [one.detach().clone() for one in model.parameters()]


def settings() -> list:
    """Every setting of every study, by its name, that has attention of this kind."""
    arms = [
        (entry.name, arm) for entry in registry.list_studies() for arm in registry.load_study(entry.name).conditions
    ]
    return [pytest.param(arm, id=f"{name} {arm.name}") for name, arm in arms if attends_so(arm.model)]


def attends_so(model: DecoderConfig) -> bool:
    """Whether the model is a decoder with causal softmax attention, no rotary positions, and its norm elsewhere."""
    kind = (model.model_type, model.attention, model.mask)
    supported = kind == (DecoderConfig.model_type, "softmax", "causal")
    return supported and model.norm_position != "output" and model.positions != "rotary"


@pytest.mark.parametrize(
    "other", [{"mask": "multiplicative"}, {"norm_position": "output"}, {"positions": "rotary"}], ids=str
)
def test_where_it_gives_way_training_is_the_plain_one(other, monkeypatch):
    compiled(9)
    config = DecoderConfig(**SHAPE, **other)
    fast = trained(4, config=config)
    monkeypatch.setattr(module, "load_kernel", lambda size: None)
    plain = trained(4, config=config)
    assert fast[0] == plain[0]
    assert all(map(torch.equal, fast[1], plain[1]))
    assert fast[0] != trained(4)[0]


@pytest.mark.parametrize("arm", spread(settings(), 8))
def test_studies_train_as_on_the_plain_path_but_for_rounding(arm, tmp_path, monkeypatch):
    compiled(9)
    training = replace(arm.scales["laptop"].training, batch_size=8, history=False)
    recipe = {"task": arm.task_at("smoke").prepare(tmp_path, print), "config": arm.model, "training": training}
    fast, fast_weights = trained(6, **recipe)
    monkeypatch.setattr(module, "load_kernel", lambda size: None)
    plain, plain_weights = trained(6, **recipe)
    assert fast == pytest.approx(plain, rel=1e-5)
    assert not all(map(torch.equal, fast_weights, plain_weights))  # it did run


@pytest.mark.parametrize("how", spread(["no compiler", "one that fails"], 1))
def test_training_without_it_is_the_same_but_for_rounding(how, afresh, monkeypatch):
    compiled(9)
    fast = trained()
    load_kernel.cache_clear()
    if how == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setenv("CXX", "false")
    plain = trained()
    assert load_kernel(size(9)) is None
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    assert fast[0] != plain[0]  # it did run


def test_it_is_compiled_once_and_the_same_again(afresh, monkeypatch):
    compiled(9)
    (kept,) = afresh.iterdir()
    assert afresh.stat().st_mode & 0o077 == 0
    first = trained()
    load_kernel.cache_clear()
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it is there"))
    again = trained()
    assert [kept] == list(afresh.iterdir())
    assert first[0] == again[0]
    assert all(map(torch.equal, first[1], again[1]))


def test_the_number_of_threads_changes_no_bit():
    compiled(20)
    block, x, given = block_of(4, 8), random(27, 20, 32), random(27, 20, 32, seed=1)
    found = []
    for count in (1, 2, 5, 11):
        with limit_threads(count):
            found.append(passes(block, x, given, "kernel"))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


@pytest.mark.slow
def test_an_unknown_processor_flag_is_no_end(afresh, monkeypatch):
    compiled(9)
    load_kernel.cache_clear()
    (kept,) = afresh.iterdir()
    kept.unlink()
    run, tried = subprocess.run, []

    def old(command: list[str], **options: object) -> subprocess.CompletedProcess:
        tried.append(command)
        return run(["false"] if any("native" in word for word in command) else command, **options)

    monkeypatch.setattr("subprocess.run", old)
    assert load_kernel(size(9)) is not None
    assert len(tried) == len(kernels.OPTIONAL_FLAGS)


def test_a_library_that_cannot_be_loaded_is_not_the_end_of_training(afresh, monkeypatch):
    monkeypatch.setattr(kernels, "_run_compiler", lambda compiler, words: Path(words[-1]).write_bytes(b"no library"))
    monkeypatch.setenv("CXX", "c++")
    assert load_kernel(size(9)) is None
    assert all(loss > 0 for loss in trained(2)[0])


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> bytes:
    """The content of a library for six positions, compiled once."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load_kernel.cache_clear()
        compiled(6)
        load_kernel.cache_clear()
        (kept,) = (folder / "mesascope").iterdir()
        return kept.read_bytes()


@pytest.fixture
def builds(afresh, library, monkeypatch) -> list[Path]:
    """Where libraries were built; a compiler that copies the one for six positions, as compiling takes seconds."""
    made: list[Path] = []

    def copy_library(compiler: str, words: list[str]) -> None:
        made.append(Path(words[-1]))
        made[-1].write_bytes(library)

    monkeypatch.setattr(kernels, "_run_compiler", copy_library)
    return made


def kept_library(folder: Path) -> Path:
    assert load_kernel(size(6)) is not None
    load_kernel.cache_clear()
    (kept,) = folder.iterdir()
    return kept


@pytest.mark.parametrize("damage", ["cut", "bit", "emptied", "writable by others", "link", "another's name", "none"])
def test_a_library_in_doubt_is_not_loaded_but_made_anew(damage, afresh, library, builds, monkeypatch):
    kept = kept_library(afresh)
    if damage == "link":
        kept.rename(afresh.parent / "elsewhere.so")
        kept.symlink_to(afresh.parent / "elsewhere.so")
    elif damage == "writable by others":
        kept.chmod(0o666)
    elif damage == "another's name":  # its own digest, and the key of another size
        key = "0" * 32
        kept.rename(afresh / f"{kept.name[:10]}{key}{kept.name[42:]}")
        monkeypatch.setattr(kernels, "_library_key", lambda *_: key)
    elif damage != "none":
        flipped = library[:-9] + bytes([library[-9] ^ 1]) + library[-8:]
        kept.write_bytes({"cut": library[:20_000], "emptied": b"", "bit": flipped}[damage])
    opened, original = [], kernels.ctypes.CDLL

    def listen(name: str) -> object:
        opened.append((name, Path(name).read_bytes()))
        return original(name)

    monkeypatch.setattr(kernels.ctypes, "CDLL", listen)
    assert load_kernel(size(6)) is not None
    ((name, loaded),) = opened
    assert loaded == library
    assert len(builds) == (1 if damage == "none" else 2)
    assert not Path(name).exists(), "a private copy is loaded"
    (now,) = afresh.iterdir()
    assert now.read_bytes() == library
    assert not now.is_symlink()
    assert now.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("place", ["the folder", "its parent"])
def test_a_folder_that_others_may_write_is_not_used(place, afresh, builds):
    kept = kept_library(afresh)
    (afresh if place == "the folder" else afresh.parent).chmod(0o777)
    assert load_kernel(size(6)) is not None
    assert len(builds) == 2
    assert afresh.parent not in builds[-1].parents
    assert list(afresh.iterdir()) == [kept]


def test_a_folder_of_somebody_else_is_not_used(afresh, builds, monkeypatch):
    kept = kept_library(afresh)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert load_kernel(size(6)) is not None
    assert list(afresh.iterdir()) == [kept]
    assert len(builds) == 2


def test_a_relative_cache_folder_is_ignored(afresh, builds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_kernel(size(6)) is not None
    assert not afresh.exists()
    assert len(list((tmp_path / "home" / ".cache" / "mesascope").iterdir())) == 1


def test_the_library_of_another_processor_is_not_loaded(afresh, builds, monkeypatch):
    kept = kept_library(afresh)
    monkeypatch.setattr(kernels, "_processor_features", lambda: "flags : sse2")
    assert load_kernel(size(6)) is not None
    assert len(builds) == 2
    assert len(set(afresh.iterdir()) - {kept}) == 1


def test_an_unknown_processor_has_a_key_of_its_own_machine(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "no features here")
    names = set()
    for name in ("one", "two"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        names.add(kernels._processor_features())
    assert len(names) == 2


COMPILE = """
import sys
from mesascope.models._fused_kernel import KernelSize, load_kernel
sys.stdin.readline()
print(load_kernel(KernelSize(H=1, D=8, L=2, NORM=1)) is not None)
"""


@pytest.mark.slow
def test_two_processes_may_compile_the_same_library_at_once(afresh, library):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", COMPILE], **pipes) for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=100)[0] for process in processes] == ["True\n", "True\n"]
    load_kernel.cache_clear()
    assert load_kernel(KernelSize(H=1, D=8, L=2, NORM=1)) is not None
    assert [file for file in afresh.iterdir() if file.suffix != ".so"] == []
