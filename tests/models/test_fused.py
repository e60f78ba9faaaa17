"""The compiled attention is the plain one but for rounding, both ways, and gives way where it does not fit."""

import subprocess
from pathlib import Path

import pytest
import torch

from mesascope.models import fused as module
from mesascope.models.fused import NAME, fused, fused_attention_forward, kernel
from mesascope.models.layers import eager_attention_forward
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.train import AdamW, Training, threads
from mesascope.train.loop import batch_of, update

SHAPE = {"d_in": 1, "d_out": 1, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "norm": "layer"}


class Softmax(torch.nn.Module):
    """All that the plain path asks of its module."""

    linear = False


@pytest.fixture
def afresh(tmp_path, monkeypatch):
    """No kernel is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernel.cache_clear()
    yield tmp_path / "cache" / "mesascope"
    kernel.cache_clear()


def compiled(d_head: int, length: int) -> None:
    """Skip where it cannot be."""
    if kernel(d_head, length) is None:
        pytest.skip("there is no C++ compiler here")


def random(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def passes(attend, heads: list[torch.Tensor], given: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradients, as this attention gives them."""
    qkv = [one.detach().to(dtype).requires_grad_() for one in heads]
    length, d_head = qkv[0].shape[2:]
    mask = torch.full((1, 1, length, length), -torch.inf, dtype=dtype).triu(1)
    mask = mask if attend is eager_attention_forward else None
    mixed, _ = attend(Softmax(), *qkv, mask, scaling=d_head**-0.5)
    mixed.backward(given.to(dtype))
    return [mixed.detach(), *(one.grad for one in qkv)]


def assert_as_exact_as_the_plain_path(heads: list[torch.Tensor], given: torch.Tensor) -> None:
    """Next to double precision, it errs no more than the plain path does, but for a few roundings."""
    exact = passes(eager_attention_forward, heads, given, torch.float64)
    plain = passes(eager_attention_forward, heads, given, torch.float32)
    ours = passes(fused_attention_forward, heads, given, torch.float32)
    for right, other, found in zip(exact, plain, ours, strict=True):
        rounding = torch.finfo(torch.float32).eps * right.abs().max()
        assert (found - right).abs().max() <= 2 * (other - right).abs().max() + 8 * rounding


@pytest.mark.parametrize(("d_head", "length"), [(8, 1), (8, 7), (16, 8), (16, 20), (16, 21), (24, 33), (64, 64)])
@pytest.mark.parametrize("size", [1.0, 5.0, 30.0], ids=["soft", "sharp", "nearly one key alone"])
def test_it_is_the_plain_path_forward_and_backward(d_head, length, size):
    compiled(d_head, length)
    heads = [random(3, length, 2, d_head, seed=n, size=size).transpose(1, 2) for n in range(3)]
    assert_as_exact_as_the_plain_path(heads, random(3, length, 2, d_head, seed=9))


def test_heads_may_lie_in_memory_as_they_like():
    compiled(16, 12)
    heads = [random(2, 3, 12, 16, seed=n) for n in range(3)]  # not as a linear map leaves them
    assert_as_exact_as_the_plain_path(heads, random(2, 16, 3, 12).permute(0, 3, 2, 1))


def test_nothing_comes_from_what_is_later():
    compiled(16, 20)
    q, k, v = (random(2, 1, 20, 16, seed=n) for n in range(3))
    before, _ = fused_attention_forward(Softmax(), q, k, v, None, 0.25)
    k[:, :, 11:], v[:, :, 11:] = 1e3, 1e3
    after, _ = fused_attention_forward(Softmax(), q, k, v, None, 0.25)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


def test_what_is_no_number_is_not_hidden():
    compiled(16, 20)
    q, k, v = (random(2, 1, 20, 16, seed=n) for n in range(3))
    q[0, 0, 5, 3] = torch.nan
    mixed, _ = fused_attention_forward(Softmax(), q, k, v, None, 0.25)
    assert mixed[0, 5].isnan().all()
    assert mixed[1].isfinite().all()


def test_smallest_numbers_stay_what_they_are():
    compiled(16, 20)
    assert float(torch.tensor(1e-40) * 1.0) > 0  # some flags let a library set them to zero for everybody


@pytest.mark.parametrize(
    ("other", "length"),
    [
        ({"attention": "linear"}, 6),
        ({"visible": "all"}, 6),
        ({"hidden_size": 16}, 6),
        ({"num_key_value_heads": 2}, 6),
        ({}, 65),
    ],
    ids=str,
)
def test_it_gives_way_where_it_does_not_fit(other, length):
    compiled(8, 6)
    model = Decoder(DecoderConfig(**{**SHAPE, **other}))
    with fused(model, length) as does:
        assert not does
        assert model.config._attn_implementation == "eager"


def test_it_gives_way_in_double_precision():
    with fused(Decoder(DecoderConfig(**SHAPE)).double(), 6) as does:
        assert not does


def test_it_is_for_training_alone():
    compiled(8, 6)
    model = Decoder(DecoderConfig(**SHAPE))
    with fused(model, 6) as does:
        assert does
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "eager"


def trained(steps: int = 12) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and weights of a short training."""
    task = Affine(length=9)
    training = Training(steps=steps, batch_size=16, optimizer=AdamW(lr=1e-2))
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**SHAPE)).train()
    optimizer = training.optimizer.build(model)
    losses = [
        update(model, optimizer, task, batch_of(task, training, 0, step), training, step, "here")[0]
        for step in range(steps)
    ]
    return losses, [one.detach().clone() for one in model.parameters()]


@pytest.mark.parametrize("how", ["no compiler", "one that fails", "no place to write"])
def test_training_without_it_is_the_same_but_for_rounding(how, afresh, monkeypatch):
    compiled(8, 9)
    fast = trained()
    kernel.cache_clear()
    if how == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(module.shutil, "which", lambda name: None)
    elif how == "one that fails":
        monkeypatch.setenv("CXX", "false")
    else:
        (afresh.parent / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(afresh.parent / "file"))
    plain = trained()
    assert kernel(8, 9) is None
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    assert fast[0] != plain[0]  # it did run


def test_it_is_compiled_once_and_the_same_again(afresh, monkeypatch):
    compiled(8, 9)
    (kept,) = afresh.iterdir()
    assert afresh.stat().st_mode & 0o077 == 0
    first = trained()
    kernel.cache_clear()
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("it is there"))
    again = trained()
    assert [kept] == list(afresh.iterdir())
    assert first[0] == again[0]
    assert all(map(torch.equal, first[1], again[1]))


def test_the_number_of_threads_changes_no_bit():
    compiled(16, 20)
    heads, given = [random(7, 20, 2, 16, seed=n).transpose(1, 2) for n in range(3)], random(7, 20, 2, 16)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            found.append(passes(fused_attention_forward, heads, given, torch.float32))
    assert all(torch.equal(one, other) for other in found[1:] for one, other in zip(found[0], other, strict=True))


def test_an_unknown_processor_flag_is_no_end(afresh, monkeypatch):
    compiled(8, 9)
    kernel.cache_clear()
    (kept,) = afresh.iterdir()
    kept.unlink()
    run, tried = subprocess.run, []

    def old(command: list[str], **options: object) -> subprocess.CompletedProcess:
        tried.append(command)
        return run(["false"] if any("native" in word for word in command) else command, **options)

    monkeypatch.setattr(module.subprocess, "run", old)
    assert kernel(8, 9) is not None
    assert len(tried) == len(module.BETTER)


def test_a_library_that_cannot_be_loaded_is_not_the_end_of_training(afresh, monkeypatch):
    monkeypatch.setattr(module, "_compile", lambda compiler, words: Path(words[-1]).write_bytes(b"no library"))
    monkeypatch.setenv("CXX", "c++")
    assert kernel(8, 9) is None
    assert all(loss > 0 for loss in trained(2)[0])


def test_a_damaged_library_is_made_anew(afresh, monkeypatch):
    compiled(8, 6)
    with monkeypatch.context() as broken:
        broken.setattr(module, "_compile", lambda compiler, words: Path(words[-1]).write_bytes(b"no library"))
        assert kernel(8, 9) is None
    kernel.cache_clear()
    assert any(file.read_bytes() == b"no library" for file in afresh.iterdir())
    assert kernel(8, 9) is not None
    assert not any(file.read_bytes() == b"no library" for file in afresh.iterdir())
