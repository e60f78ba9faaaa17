"""Recurrent transformers: what they compute, what they may see, and that they come back from a file."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cases import spread
from mesascope.models.config import DecoderConfig
from mesascope.models.fused import fused_attention
from mesascope.models.load import load_checkpoint
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentOutput, RecurrentTransformer
from mesascope.models.transformer import Decoder
from recurrent_models import CHUNKS, GUT, HALTING_KINDS, KINDS, SMALL, recurrent, some_tokens

PER_POSITION = ("logits", "halting_probabilities", "halting_weights", "expected_steps", "num_steps")


def fields_of(output: RecurrentOutput, positions: slice | Tensor) -> dict[str, Tensor]:
    """What an output holds at some positions; the axis of positions is put first."""
    found = {}
    for name in PER_POSITION:
        value = output.get(name)
        if value is not None:
            found[name] = value.movedim(1 if name == "logits" else -1, 0)[positions]
    return found


def have_changed(before: RecurrentOutput, after: RecurrentOutput) -> Tensor:
    """Whether the logits differ at each position, unless it has halted before its first step both times."""
    differs = (before.logits != after.logits).any(-1)
    if before.num_steps is None:
        return differs
    return differs | (before.num_steps + after.num_steps == 0)


def with_decoder_weights(model: RecurrentTransformer, **fields: Any) -> Decoder:
    """A decoder with the weights of a recurrent transformer."""
    shape = {k: v for k, v in SMALL.items() if k != "max_iterations"}
    config = model.config
    decoder = Decoder(DecoderConfig(**shape, norm=config.norm, positions=config.positions, mask=config.mask, **fields))
    weights = model.state_dict()
    tied = {f"layers.{n}.{k[9:]}": v for n in range(9) for k, v in weights.items() if k.startswith("layers.0.")}
    decoder.load_state_dict(
        {name: (weights | tied if fields.get("share_layers") else weights)[name] for name in decoder.state_dict()}
    )
    return decoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_later_token_changes_nothing_before_it(kind: str) -> None:
    model, x = recurrent(kind), some_tokens()
    for at in (2, 4, 7, 10):
        changed = x.clone()
        changed[:, at] = x[:, at] % 6 + 1
        before, after = model(x), model(changed)
        first, second = fields_of(before, slice(at)), fields_of(after, slice(at))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (have_changed(before, after) | (torch.arange(11) < at)).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_sequence_changes_nothing_before_its_new_tokens(kind: str) -> None:
    """Chunks begin at fixed positions, whatever the length is."""
    model, x = recurrent(kind).double(), some_tokens(pos=14)
    whole = fields_of(model(x), slice(None))
    for length in (1, 3, 4, 5, 9, 13):
        for name, value in fields_of(model(x[:, :length]), slice(None)).items():
            torch.testing.assert_close(value, whole[name][:length], atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", HALTING_KINDS)
def test_positions_of_the_test_models_halt_at_different_steps(kind: str) -> None:
    """Otherwise the tests of causality and padding say nothing about halting."""
    assert len(recurrent(kind)(some_tokens()).num_steps.unique()) >= 3


@torch.no_grad()
@pytest.mark.parametrize("kind", [name for name, fields in KINDS.items() if "chunk_length" not in fields])
def test_with_a_full_mask_every_token_is_seen_everywhere(kind: str) -> None:
    model, x = recurrent(kind, mask="full"), some_tokens()
    changed = x.clone()
    changed[:, -1] = x[:, -1] % 6 + 1
    assert have_changed(model(x), model(changed)).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["TLB", "GUTLB"])
def test_with_a_full_mask_a_chunk_sees_itself_and_earlier_chunks(kind: str) -> None:
    model, x = recurrent(kind, mask="full"), some_tokens(pos=12)
    changed = x.clone()
    changed[:, 6] = x[:, 6] % 6 + 1
    before, after = model(x), model(changed)
    assert torch.equal(before.logits[:, :4], after.logits[:, :4])
    assert have_changed(before, after)[:, 4:].all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "mask", "positions"), spread(product(KINDS, ["causal", "full"], ["rotary", "learned"]), 11)
)
def test_padding_changes_nothing(kind: str, mask: str, positions: str) -> None:
    """On the left, on the right, and between tokens; known from a mask, or from the token."""
    fields = {"halting_penalty": 0.1} if kind in HALTING_KINDS else {}
    model = recurrent(kind, mask=mask, positions=positions, **fields).double()
    x = some_tokens(pos=9)
    alone = model(x)
    for pads in ((5, 0, 0), (0, 0, 6), (3, 0, 2), (0, 2, 0)):
        left, between, right = (torch.zeros(3, n, dtype=torch.int64) for n in pads)
        padded = torch.cat([left, x[:, :4], between, x[:, 4:], right], dim=1)
        is_real = padded[0] != 0
        model.config.pad_token_id = None
        by_mask = model(padded.masked_fill(padded == 0, 5), attention_mask=(padded != 0).long())
        model.config.pad_token_id = 0
        for output in (by_mask, model(padded)):
            first, second = fields_of(output, is_real), fields_of(alone, slice(None))
            assert first.keys() == second.keys()
            for name in first:
                torch.testing.assert_close(first[name], second[name], atol=1e-10, rtol=0)
            rest = fields_of(output, ~is_real)
            assert not any(rest[name].any() for name in rest if name != "logits")
            if fields:
                torch.testing.assert_close(output.auxiliary_loss, alone.auxiliary_loss, atol=1e-10, rtol=0)


@torch.no_grad()
def test_sequences_of_different_lengths_are_padded_each_on_its_own() -> None:
    for kind in KINDS:
        model, x = recurrent(kind, pad_token_id=0).double(), some_tokens(pos=10)
        padded = x.clone()
        padded[0, 7:], padded[1, :3] = 0, 0
        output = model(padded).logits
        for row, real in ((0, slice(7)), (1, slice(3, None)), (2, slice(None))):
            torch.testing.assert_close(output[row, real], model(x[row : row + 1, real]).logits[0], atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
def test_a_model_that_does_not_halt_is_a_decoder_with_shared_layers_bit_for_bit(mask: str, positions: str) -> None:
    model = recurrent("UT without halting", max_iterations=3, mask=mask, positions=positions)
    decoder = with_decoder_weights(model, num_hidden_layers=3, share_layers=True)
    x = some_tokens()
    assert torch.equal(model(x).logits, decoder(x).logits)
    padding = torch.ones_like(x)
    padding[:, 8:] = 0
    found, expected = (each(x, attention_mask=padding).logits for each in (model, decoder))
    assert torch.equal(found[:, :8], expected[:, :8])


@torch.no_grad()
def test_a_single_step_of_several_layers_is_a_decoder_bit_for_bit() -> None:
    model = recurrent("UT without halting", max_iterations=1, num_hidden_layers=3, norm="rms")
    decoder, x = with_decoder_weights(model, num_hidden_layers=3), some_tokens()
    assert torch.equal(model(x).logits, decoder(x).logits)
    again = recurrent("UT without halting", max_iterations=2, num_hidden_layers=3, norm="rms")
    assert not torch.equal(again(x).logits, decoder(x).logits)


@torch.no_grad()
def test_a_gate_of_one_is_no_gate_and_a_gate_of_zero_no_step() -> None:
    for kind in ("GUT", "GUTLB"):
        gated, ungated, x = recurrent(kind), recurrent(kind, gate=False), some_tokens()
        ungated.load_state_dict({name: v for name, v in gated.state_dict().items() if ".gate." not in name})
        assert not torch.equal(gated(x).logits, ungated(x).logits)
        gate = gated.layers[0].gate
        gate.down_proj.weight.zero_()
        gate.down_proj.bias.fill_(200.0)
        assert torch.equal(gated(x).logits, ungated(x).logits)
        gate.down_proj.bias.fill_(-200.0)
        torch.testing.assert_close(gated(x).logits, gated.readout(gated.final_norm(gated.embed(x))))


@torch.no_grad()
def test_the_gated_block_is_the_sum_that_it_is_said_to_be() -> None:
    block, x = recurrent("GUT").layers[0], torch.randn(2, 5, 16)
    places = torch.arange(5)[None]
    h = x + block.attention(block.attention_norm(x), None, places)
    g = torch.sigmoid(block.gate(block.mlp_norm(h)))
    y = h + block.mlp(block.mlp_norm(h))
    torch.testing.assert_close(block(x, None, places), g * y + (1 - g) * x)


@torch.no_grad()
def test_chunks_pass_on_a_memory_and_nothing_else() -> None:
    """By hand: every chunk attends to itself and to the memory, which then attends to the chunk."""
    model, x = recurrent("TLB"), some_tokens(pos=10)
    assert model.memory_update is not None
    update, memory, expected = model.memory_update, model.memory_update.initial_memory.weight.expand(3, -1, -1), []
    for start in (0, 4, 8):
        states = model.embed(x[:, start : start + 4])
        length = states.shape[1]
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        places = start + torch.arange(length)[None]
        for block in model.layers:
            h = states + block.attention(block.attention_norm(states), mask, places)
            cross = block.memory_attention
            h = h + cross(h, cross.project_source(memory))
            states = h + block.mlp(block.mlp_norm(h))
        expected.append(states)
        memory = memory + update.attention(memory, update.attention.project_source(states))
        memory = memory + update.mlp(update.mlp_norm(memory))
    torch.testing.assert_close(model(x).logits, model.readout(model.final_norm(torch.cat(expected, 1))))


@torch.no_grad()
def test_cross_attention_is_the_sum_that_it_is_said_to_be() -> None:
    cross = recurrent("TLB").layers[0].memory_attention
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    q, k, v = (
        cross.q_proj(cross.query_norm(x)),
        cross.k_proj(cross.source_norm(memory)),
        cross.v_proj(cross.source_norm(memory)),
    )
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        weights = (q[..., head] @ k[..., head].mT / 8**0.5).softmax(-1)
        heads.append(weights @ v[..., head])
    torch.testing.assert_close(cross(x, cross.project_source(memory)), cross.o_proj(torch.cat(heads, -1)))


def test_slots_of_the_memory_differ_after_training() -> None:
    """Equal slots would have equal gradients."""
    torch.manual_seed(0)
    model = RecurrentTransformer(RecurrentConfig(**SMALL | KINDS["TLB"]))
    x = some_tokens()
    model(x).logits.logsumexp(-1).sum().backward()
    assert model.memory_update is not None
    gradient = model.memory_update.initial_memory.weight.grad
    assert gradient is not None
    assert (gradient[0] - gradient[1]).abs().max() > 1e-3 * gradient.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind: str) -> None:
    fields = {"halting_penalty": 0.1} if kind in HALTING_KINDS else {}
    model, x = recurrent(kind, **fields).train(), some_tokens()
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), x.flatten())
    (loss + (output.auxiliary_loss if fields else 0)).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_a_file_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model, x = recurrent(kind, pad_token_id=0, tie_word_embeddings=kind == "GUT"), some_tokens()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, RecurrentConfig)
    assert {name: getattr(config, name) for name in ("halt", "gate", "chunk_length", "pad_token_id")} == {
        name: getattr(model.config, name) for name in ("halt", "gate", "chunk_length", "pad_token_id")
    }
    expected = model(x)
    for opener in (AutoModel.from_pretrained, AutoModelForCausalLM.from_pretrained, load_checkpoint):
        loaded: Any = opener(tmp_path)
        assert type(loaded) is RecurrentTransformer
        found, weights = loaded.state_dict(), model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        # memory-mapped weights can be aligned differently, which changes the last bit of sums: copy them first
        again = RecurrentTransformer(loaded.config).eval()
        again.load_state_dict(found)
        output = again(x)
        assert output.keys() == expected.keys()
        assert all(torch.equal(output[name], expected[name]) for name in expected)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_initial_weights_depend_on_the_seed_alone_and_are_those_of_a_decoder() -> None:
    for kind in KINDS:
        config = RecurrentConfig(**SMALL | KINDS[kind] | {"hidden_size": 64, "residual_init_scale": 0.1})
        models = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            models.append(RecurrentTransformer(config))
        first, second, other = (dict(model.named_parameters()) for model in models)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert not torch.equal(first["embed.weight"], other["embed.weight"])
        for name, module in models[0].named_modules():
            if isinstance(module, torch.nn.Linear):
                writes = name.endswith(("o_proj", "mlp.down_proj"))
                expected = (0.1 if writes else 1.0) * module.in_features**-0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.25), name
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, torch.nn.Embedding):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.25), name


@torch.no_grad()
def test_vectors_are_taken_as_by_a_decoder() -> None:
    torch.manual_seed(0)
    fields = SMALL | {"vocab_size": None, "d_in": 3, "d_out": 2}
    model = RecurrentTransformer(RecurrentConfig(**fields, **GUT)).eval()
    assert model(torch.randn(2, 6, 3)).logits.shape == (2, 6, 2)


@torch.no_grad()
def test_packed_sequences_are_separated_or_refused() -> None:
    x, restart = some_tokens(batch=1, pos=8), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    model = recurrent("GUT without global halting")
    parts = [model(x[:, :5]).logits, model(x[:, 5:]).logits]
    torch.testing.assert_close(model(x, position_ids=restart).logits, torch.cat(parts, 1))
    for kind, mask in (("GUT", "causal"), ("TLB", "causal"), ("GUTLB", "causal"), ("UT", "full")):
        with pytest.raises(ValueError, match="position_ids must not restart in a model with halt='global', chunks or"):
            recurrent(kind, mask=mask)(x, position_ids=restart)


def test_a_mask_of_another_shape_is_refused() -> None:
    message = r"attention_mask must have the shape of the inputs, \(3, 11\), but got \(3, 10\)"
    with pytest.raises(ValueError, match=message):
        recurrent()(some_tokens(), attention_mask=torch.ones(3, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs inputs or input_ids, but got neither"):
        recurrent()()
    with pytest.raises(ValueError, match="at most 32 positions, but got 33"):
        recurrent()(some_tokens(pos=33))


def test_the_fused_kernel_is_not_used() -> None:
    with fused_attention(recurrent("UT", positions="learned"), 11) as used:
        assert not used


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": None}, "a decoder needs either vocab_size"),
        ({"max_iterations": 0, "halt": "none"}, "max_iterations must be at least 1 with halt='none', but got 0"),
        ({"max_iterations": 1}, "max_iterations must be at least 2 with halt='token', but got 1"),
        ({"halt": "never"}, "halt must be one of none, token, global, but got 'never'"),
        ({"halt": "none", "transition": True}, "transition=True needs halting, but halt is 'none'"),
        ({"halt": "none", "halting_penalty": 0.1}, "halting_penalty=0.1 needs halting, but halt is 'none'"),
        ({"halting_penalty": -1.0}, "halting_penalty must be at least 0, but got -1.0"),
        ({"halting_threshold": 0.0}, "halting_threshold must be above 0 and at most 1, but got 0.0"),
        ({"halting_threshold": 1.5}, "halting_threshold must be above 0 and at most 1, but got 1.5"),
        ({"halting_threshold": float("nan")}, "halting_threshold must be a number, but got nan"),
        ({"gate": True, "intermediate_size": 0}, "gate=True needs an MLP, but intermediate_size is 0"),
        ({"chunk_length": 4}, "must be given together, but got chunk_length=4 and memory_slots=None"),
        ({"memory_slots": 4}, "must be given together, but got chunk_length=None and memory_slots=4"),
        (CHUNKS | {"chunk_length": 0}, "chunk_length must be at least 1, but got 0"),
        (CHUNKS | {"memory_slots": 0}, "memory_slots must be at least 1, but got 0"),
        ({"mask": "multiplicative"}, "mask must be causal or full, but got 'multiplicative'"),
        ({"pad_token_id": 7}, "pad_token_id must be a token below vocab_size, but got 7 and 7"),
        ({"pad_token_id": -1}, "pad_token_id must be a token below vocab_size, but got -1 and 7"),
        ({"attention": "linear"}, "attention of a recurrent transformer must be 'softmax', but got 'linear'"),
        ({"norm_position": "post"}, "norm_position of a recurrent transformer must be 'pre', but got 'post'"),
        ({"share_layers": True}, "share_layers of a recurrent transformer must be False, but got True"),
        ({"hidden_size": 15}, "hidden_size must be a multiple of num_attention_heads, but got 15 and 2"),
        ({"gate": "yes"}, "gate must be True or False, but got 'yes'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentConfig(**SMALL | fields)
