"""Path patching from earlier components into the values of the heads in the last layer."""

import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.interventions import path_patch
from mesascope.interventions.metrics import Metric, task_loss
from mesascope.statistics import derangement
from mesascope.tasks.base import Batch, Task

ALL_SENDERS = "all"
Sender = tuple[str, int]  # site and layer


@analysis(
    title="Paths into the values of the last layer",
    description="""
        Path patching from the embedding and from the output of each earlier attention and MLP sublayer into the value
        input of each head of the last layer: the sender has its activation from another sequence, every other component
        is frozen, and only the values of this head change. Effect: mean over sequences of log10 of the factor by which
        the loss rises. The sender "all" replaces everything that the values read. A sender whose content the head uses
        raises the loss; one whose content it ignores does not.
    """,
    input="model",
    steps="last",
)
def value_paths(
    model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, sequences: int = 128, seed: int = 0
) -> xr.Dataset:
    """Measure which earlier components reach the output through the values of each head of the last layer.

    Args:
        model: a decoder with two or more layers.
        task: defines the loss.
        batch: sequences to measure on.
        first: positions before this one are left out of the loss.
        sequences: number of sequences used.
        seed: of the assignment of other sequences.

    Returns:
        ``effect`` by component and head.

    Raises:
        ValueError: the model has one layer, so that no component precedes the values of its heads.
    """
    senders = _list_senders(model)
    batch = batch[:sequences]
    order = derangement(len(batch.inputs), torch.Generator().manual_seed(seed)).to(batch.inputs.device)
    metric, source = _log_loss(task_loss(task, batch, first)), batch.inputs[order]
    heads = [_patch_values(model, batch, source, metric, senders, head) for head in range(_count_value_heads(model))]
    names = {"component": [*(_name_sender(one) for one in senders[:-1]), ALL_SENDERS]}
    about = "mean over sequences of log10 of the factor by which patching this path multiplies the loss"
    effect = to_data_array(torch.tensor(heads).T, "component", "head", units="1", description=about, coords=names)
    return xr.Dataset(
        {"effect": effect.assign_attrs(center=0, headline=1)}, attrs={"layer": model.config.num_hidden_layers - 1}
    )


def _list_senders(model: PreTrainedModel) -> list[Sender]:
    """Return the embedding, the sublayers before the last layer, and the input of the last layer."""
    top = model.config.num_hidden_layers - 1
    if top == 0:
        raise ValueError("value_paths needs a model of two or more layers, but got one; nothing precedes its values")
    sites = ("attn_out", "mlp_out") if model.config.intermediate_size else ("attn_out",)
    sublayers = [(site, layer) for layer in range(top) for site in sites]
    return [("resid_pre", 0), *sublayers, ("resid_pre", top)]


def _count_value_heads(model: PreTrainedModel) -> int:
    return int(model.config.num_key_value_heads)


def _patch_values(
    model: PreTrainedModel, batch: Batch, source: Tensor, metric: Metric, senders: list[Sender], head: int
) -> list[float]:
    """Return the effect of every sender through the values of one head; senders of one site share their passes."""
    receiver = {"layer": model.config.num_hidden_layers - 1, "kv_head": head}
    effects: dict[Sender, float] = {}
    for site in dict.fromkeys(site for site, _ in senders):
        layers = [layer for name, layer in senders if name == site]
        where, axes = {"layer": layers}, ("layer",)
        patched = path_patch(
            model, batch, source, metric, site, axes, receiver="value", receiver_where=receiver, where=where
        )
        effects |= {(site, layer): float(patched["effect"].sel(layer=layer).mean()) for layer in layers}
    return [effects[sender] for sender in senders]


def _log_loss(loss: Metric) -> Metric:
    def compute_log_loss(output: Tensor) -> Tensor:
        values = loss.fn(output)
        return values.clamp_min(torch.finfo(values.dtype).tiny).log10()

    return Metric(name="log_loss", units="1", description="log10 of the loss of a sequence", fn=compute_log_loss)


def _name_sender(sender: Sender) -> str:
    site, layer = sender
    return "embedding" if site == "resid_pre" else f"{'attention' if site == 'attn_out' else 'MLP'} {layer}"
