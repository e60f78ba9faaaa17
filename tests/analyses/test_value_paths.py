"""Path patching into the values of the last layer: what a planted head reads is found, and nothing else."""

import pytest
import torch

from mesascope.analyses.causal.value_paths import value_paths
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks.affine import Affine

TASK = Affine(length=8)
COPY_DIM, READ_DIM = 2, 3


@pytest.fixture
def batch():
    return TASK.sample(32, torch.Generator().manual_seed(0))


def build_reader(reads: str) -> Decoder:
    """Two layers without MLP; head 0 of layer 1 averages what the embedding, or what layer 0's attention wrote.

    Head 0 of layer 0 averages the terms into another dimension of the stream than the embedding's.
    """
    config = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, positions="none")
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("embed.weight")[0, 0] = 1.0
        copy, read = (model.get_submodule(f"layers.{layer}.attention") for layer in (0, 1))
        copy.v_proj.weight[0, 0] = 1.0
        copy.o_proj.weight[COPY_DIM, 0] = 1.0
        read.v_proj.weight[0, 0 if reads == "embedding" else COPY_DIM] = 1.0
        read.o_proj.weight[READ_DIM, 0] = 1.0
        model.get_parameter("readout.weight")[0, READ_DIM] = 0.5
    return model


@pytest.mark.parametrize(("reads", "other"), [("embedding", "attention 0"), ("attention 0", "embedding")])
def test_the_component_that_a_head_reads_is_found(reads, other, batch):
    effect = value_paths(build_reader(reads), TASK, batch, first=3)["effect"]
    assert effect.sizes == {"component": 3, "head": 2}
    assert abs(float(effect.sel(component=reads, head=0))) > 0.01
    assert float(effect.sel(component=other, head=0)) == 0
    assert float(effect.sel(component=reads, head=0)) == pytest.approx(float(effect.sel(component="all", head=0)))
    assert not effect.sel(head=1).any()  # its values do not reach the output


def test_patching_everything_equals_the_loss_with_the_values_of_other_sequences(batch):
    """With one layer of reading, the values of the other sequences are those of its own terms there."""
    effect = value_paths(build_reader("embedding"), TASK, batch, first=3, seed=1)["effect"]
    from mesascope.statistics import derangement

    order = derangement(32, torch.Generator().manual_seed(1))
    averages = batch.inputs.cumsum(1) / torch.arange(1, 9)[:, None]
    losses = [TASK.loss(0.5 * values, batch)[:, 3:].mean(1).log10() for values in (averages, averages[order])]
    assert float(effect.sel(component="all", head=0)) == pytest.approx(float((losses[1] - losses[0]).mean()), abs=1e-4)


def test_mlps_are_components_of_their_own(batch):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=2, norm="layer", intermediate_size=32)).eval()
    names = value_paths(model, TASK, batch)["component"].values.tolist()
    assert names == ["embedding", "attention 0", "MLP 0", "all"]


def test_nothing_precedes_the_values_of_a_single_layer(batch):
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1))
    with pytest.raises(ValueError, match="needs a model of two or more layers, but got one"):
        value_paths(model, TASK, batch)
