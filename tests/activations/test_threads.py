"""Several threads that use one model, or models that share a configuration; and models with compiled parts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import small
from mesascope import capture
from mesascope.activations import BatchedEdits, Edit, attach_hooks
from mesascope.activations.structure._read_structure import read_structure

SITES = ["resid_pre", "mlp_out", "pattern", "output"]


def tokens(seed: int, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 20, (2, length), generator=torch.Generator().manual_seed(seed))


def expected_of(model, x):
    with torch.no_grad():
        return model(x).logits


def run_threads(work, arguments):
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, *zip(*arguments, strict=True)))


@pytest.mark.parametrize("sites", [SITES, ["resid_pre_grad", "output"]])
def test_threads_capture_one_model_as_if_alone(sites):
    model = small.llama()
    texts = [tokens(seed) for seed in range(4)]
    expected = [expected_of(model, x) for x in texts]
    alone = [capture(model, x, sites) for x in texts]

    def work(number, _):
        return [capture(model, texts[number], sites) for _ in range(4)]

    for number, acts in enumerate(run_threads(work, [(n, None) for n in range(4)])):
        assert all(torch.equal(each["output"], expected[number]) for each in acts)
        assert all(torch.equal(each[sites[0]], alone[number][sites[0]]) for each in acts)
    assert all(torch.equal(expected_of(model, x), y) for x, y in zip(texts, expected, strict=True))
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_threads_with_models_of_one_configuration():
    first = small.llama()
    second = type(first)(first.config).eval()
    assert second.config is first.config
    x = tokens(0)
    expected = [expected_of(model, x) for model in (first, second)]

    def work(model, y):
        return all(torch.equal(capture(model, x, SITES)["output"], y) for _ in range(6))

    assert all(run_threads(work, [(first, expected[0]), (second, expected[1])] * 2))
    assert first.config._attn_implementation == "sdpa"
    assert torch.equal(expected_of(first, x), expected[0])


def test_a_forward_pass_of_another_thread_is_neither_recorded_nor_changed():
    """A server answers while a capture lasts: the pass of another thread must not reach the recorder or the edits."""
    model, x, other = small.llama(), tokens(0), tokens(1)
    expected, expected_other = expected_of(model, x), expected_of(model, other)
    wrong, stop = [], threading.Event()

    def serve():
        while not stop.is_set():
            if not torch.equal(expected_of(model, other), expected_other):
                wrong.append("other logits")

    zeros = Edit(site="z", where={"layer": 1}, fn=torch.zeros_like)
    edited = capture(model, x, ["output"], edits=[zeros])["output"]
    batched = BatchedEdits(model, x, "z")
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(15):
            assert torch.equal(capture(model, x, SITES)["output"], expected)
            assert torch.equal(capture(model, x, ["output"], edits=[zeros])["output"], edited)
            assert torch.allclose(batched.run_edits([[zeros]])[0], edited, atol=1e-5)
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert model.config._attn_implementation == "sdpa"


def test_hooks_attached_by_hand_serve_the_thread_that_generates():
    model, x = small.llama(), tokens(0)
    layers, seen = read_structure(model, x).layers, []
    with attach_hooks(model, layers, {"z": [0], "resid_pre": [1]}, lambda site, layer, value: seen.append(site)):
        run_threads(lambda m, y: expected_of(m, y), [(model, x)])
    assert seen == ["z", "resid_pre"]


def compile_mlps(model):
    for layer in model.model.layers:
        layer.mlp.compile(backend="eager")


def compile_layers(model):
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer, backend="eager")


def compile_forward(model):
    model.model.forward = torch.compile(model.model.forward, backend="eager")


def compile_model(model):
    model.compile(backend="eager")


@pytest.mark.parametrize("compile_part", [compile_mlps, compile_layers, compile_forward, compile_model])
def test_compiled_parts_run_uncompiled_while_they_are_captured(compile_part):
    model, x = small.llama(), tokens(0, 12)
    expected = capture(model, x, ["resid_pre", "mlp_out", "pattern", "output"])
    compile_part(model)
    acts = capture(model, x, ["resid_pre", "mlp_out", "pattern", "output"])
    for site in ("resid_pre", "mlp_out", "pattern", "output"):
        assert torch.equal(acts[site], expected[site])
    from torch._dynamo import eval_frame

    assert eval_frame._stance.stance == "default"
