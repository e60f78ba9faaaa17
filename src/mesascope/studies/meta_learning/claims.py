"""The claims of the meta-learning view: what an inner optimisation across layers would show, and what it would not."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Results, last, untrained
from mesascope.studies.shared.head_claims import causal_claims

PAPER = "Wu & Varshney 2023"
OURS = "ours"
LABELS = ("generator", "next token", "generator and next token")
DESCENDED = ("quadratic", "hopfield", "fast_weight")  # inner objectives that attention may descend and may not
MOST_EXCESS = 1.1  # loss over that of predictors that know the generators
MOST_ERROR = 1e-4  # of the dual form in float32
LEAST_ERROR = 0.1  # of half of it
MOST_PAIRS = 0.9  # of adjacent depths
ROUNDING = 1e-4  # of a predicted norm in float32
HISTORY = "sgd_history_attention"
SAME_MAP = "attention.q_proj"  # compared over layers: another kind of map attends otherwise in the same layer


def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the paper's figures."""
    return (
        *_outer_loss(),
        *(claim for name in LABELS for claim in _clusters(name)),
        *(claim for name in DESCENDED for claim in _inner_loss(name)),
        *_inner_step("", ""),
        *_inner_step("text_", "on real text: "),
        *_dual_form(),
        *(claim for name in LABELS for claim in _attention(name)),
        *_norms("", ""),
        *_norms("text_", "on real text: "),
        *_gram(),
        *(
            claim
            for prefix, where in (("", ""), ("text_", "on real text: "))
            for lens in ("logit", "affine")
            for claim in _readout(prefix, where, lens)
        ),
        *causal_claims(),
        *causal_claims("text_", "on real text: "),
    )


def _outer_loss() -> tuple[Claim, ...]:
    """Training has brought the model to where claims about it mean something."""
    about = {
        "Bayes": "that knows all generators and infers which it is",
        "generator known": "that is told the generator",
    }
    return tuple(
        Claim(
            name=f"the outer loss is low: {oracle}",
            sentence=f"On validation sequences the loss is within a tenth of that of the predictor {told}.",
            source=f"{OURS}: what comes next is about a model that has learned its task",
            statistic=lambda results, oracle=oracle: _over(results, "model", oracle),
            about=f"validation loss over that of the predictor {told}",
            control=lambda results, oracle=oracle: _over(results, "bigram", oracle),
            control_about="the same of the bigram, which knows tokens but no generator",
            direction="below",
            bound=MOST_EXCESS,
        )
        for oracle, told in about.items()
    )


def _clusters(name: str) -> tuple[Claim, ...]:
    """What figure 1 is about. F1 is high for any one large cluster, so what permuted labels give is taken off."""

    def f1(results: Results) -> xr.DataArray:
        return results["clusters"]["pairwise_f1"].sel(stat=name, drop=True)

    def permuted(results: Results) -> xr.DataArray:
        return results["clusters"]["pairwise_f1_permuted"].sel(stat=name, drop=True)

    def above(results: Results) -> xr.DataArray:
        return f1(results) - permuted(results).mean("draw")

    score = f"pairwise F1 of k-means with {name}, less that with permuted labels,"
    return (
        Claim(
            name=f"clusters by {name}",
            sentence=f"After the last layer, representations cluster by {name} more than by chance.",
            source=f"{PAPER}, figure 1",
            statistic=lambda results: last(f1(results)).isel(layer=-1, drop=True),
            about=f"pairwise F1 of k-means with {name}, after the last layer",
            control=lambda results: last(permuted(results)).isel(layer=-1, drop=True).max("draw"),
            control_about="the highest with permuted labels",
            direction="above",
        ),
        Claim(
            name=f"clusters by {name} come from the layers",
            sentence=f"After the last layer, representations cluster by {name} more than embeddings do.",
            source=f"{PAPER}, figure 1",
            statistic=lambda results: last(above(results)).isel(layer=-1, drop=True),
            about=f"{score} after the last layer",
            control=lambda results: last(above(results)).isel(layer=0, drop=True),
            control_about="the same at the embedding",
            direction="above",
        ),
        Claim(
            name=f"clusters by {name} come with training",
            sentence=f"Clusters by {name} become clearer in training.",
            source=f"{PAPER}, figure 1",
            statistic=lambda results: last(above(results)).isel(layer=slice(1, None)).max("layer"),
            about=f"{score} highest after any layer",
            control=lambda results: untrained(above(results)).isel(layer=slice(1, None)).max("layer"),
            control_about="the same in the untrained model",
            direction="above",
        ),
        Claim(
            name=f"clusters by {name} are clearest in the upper layers",
            sentence=f"Clusters by {name} are clearer in the upper half of the layers than below.",
            source=f"{PAPER}, figure 1, in our words",
            statistic=lambda results: _halves(last(above(results)))[1],
            about=f"{score} mean over the upper half of the depths",
            control=lambda results: _halves(last(above(results)))[0],
            control_about="the same over the lower half, the embedding among them",
            direction="above",
        ),
    )


def _inner_loss(name: str) -> tuple[Claim, ...]:
    """What figures 2 and 4 are about, for an objective that can fail; the linear one cannot, and carries no claim."""

    def descends(results: Results, kind: str = "") -> xr.DataArray:
        return results[f"inner_{name}"][f"descends{kind}"].sel(sublayer="attention", drop=True).mean("layer")

    def falls(array: xr.DataArray) -> xr.DataArray:
        return _falling(array.sel(sublayer="attention", drop=True))

    shown = {"hopfield": "Hopfield"}.get(name, name.replace("_", " "))
    return (
        Claim(
            name=f"attention descends: {shown}",
            sentence=f"What attention writes lowers the {shown} objective that its own weights define.",
            source=f"{PAPER}: inner optimisation; the objective is ours to choose",
            statistic=lambda results: last(descends(results)),
            about="share of tokens at which the update lowers the objective, mean over layers",
            control=lambda results: last(descends(results, "_keys_shuffled")).max("draw"),
            control_about="the highest with the keys in random order",
            direction="above",
        ),
        Claim(
            name=f"descent comes with training: {shown}",
            sentence=f"Training makes attention lower the {shown} objective more often.",
            source=f"{PAPER}, figure 2, in our words",
            statistic=lambda results: last(descends(results)),
            about="share of tokens at which the update lowers the objective, mean over layers",
            control=lambda results: untrained(descends(results)),
            control_about="the same in the untrained model",
            direction="above",
        ),
        Claim(
            name=f"inner loss falls over layers: {shown}",
            sentence=f"The {shown} objective is lower in every layer than in the one before.",
            source=f"{PAPER}, figure 2 (a); each layer has an objective of its own, and they are compared all the same",
            statistic=lambda results: falls(last(results[f"inner_{name}"]["before"])),
            about="share of adjacent layers in which the objective before the update falls",
            control=lambda results: falls(untrained(results[f"inner_{name}"]["before"])),
            control_about="the same in the untrained model",
            direction="above",
            bound=MOST_PAIRS,
        ),
    )


def _inner_step(prefix: str, where: str) -> tuple[Claim, ...]:
    """Whether layers move tokens down the outer loss."""

    def cosine(results: Results, name: str = "cosine") -> xr.DataArray:
        return results[f"{prefix}inner_outer"][name].mean(("layer", "sublayer"))

    return (
        Claim(
            name=f"{where}updates descend the outer loss",
            sentence=_said(
                where, "What a layer adds to a token's representation points down the loss that training minimises."
            ),
            source=f"{PAPER}: inner optimisation; {OURS} in this form",
            statistic=lambda results: last(cosine(results)),
            about="cosine of update and minus the gradient of the loss, mean over layers and sublayers",
            control=lambda results: last(cosine(results, "cosine_elsewhere")),
            control_about="the same with the updates of other positions",
            direction="above",
            bound=0.0,
        ),
        Claim(
            name=f"{where}updates come to descend the outer loss",
            sentence=_said(where, "Training makes what layers add point further down the loss."),
            source=OURS,
            statistic=lambda results: last(cosine(results)),
            about="cosine of update and minus the gradient of the loss, mean over layers and sublayers",
            control=lambda results: untrained(cosine(results)),
            control_about="the same in the untrained model",
            direction="above",
        ),
    )


def _dual_form() -> tuple[Claim, ...]:
    """Whether a trained map is attention over its history, all of it."""

    def error(results: Results, kind: str = "") -> xr.DataArray:
        return last(results[HISTORY][f"dual_error{kind}"])

    return (
        Claim(
            name="outputs are attention over the history",
            sentence="What a map gives is what its start gives plus attention over all that it was trained on.",
            source=f"{PAPER}, after Irie et al. 2022; an identity, and so a check of the record",
            statistic=lambda results: error(results).max(("layer", "map")),
            about="largest relative error of the outputs of a map, put together from its whole history",
            control=lambda results: error(results, "_half").min(("layer", "map")),
            control_about="the smallest with a random half of the instances left out",
            direction="below",
            bound=MOST_ERROR,
        ),
        Claim(
            name="the whole history is needed",
            sentence="With half of the history left out, the outputs of every map are missed by a tenth or more.",
            source=OURS,
            statistic=lambda results: error(results, "_half").min(("layer", "map")),
            about="smallest relative error of a map with a random half of the instances left out",
            control=lambda results: error(results).max(("layer", "map")),
            control_about="the largest with all of them",
            direction="above",
            bound=LEAST_ERROR,
        ),
    )


def _attention(name: str) -> tuple[Claim, ...]:
    """What figure 3 is about."""

    def share(results: Results, kind: str) -> xr.DataArray:
        return last(results[HISTORY][f"{kind}_by_layer"]).sel(stat=name, drop=True)

    def spread(results: Results, kind: str) -> xr.DataArray:
        found = last(results[HISTORY][kind]).sel(stat=name, map=SAME_MAP, drop=True).dropna("layer", how="all")
        return found.max("layer") - found.min("layer")

    return (
        Claim(
            name=f"attends to the same {name}",
            sentence=f"Instances attended most share the {name} more often than chance and than those attended least.",
            source=f"{PAPER}, figure 3; what vectors of tokens bring is in the next claim",
            statistic=lambda results: share(results, "top").mean("layer"),
            about=f"share of the 10 most attended instances with the query's {name}, mean over layers",
            control=lambda results: (
                xr.concat([share(results, "top_permuted"), share(results, "last")], "end").max("end").mean("layer")
            ),
            control_about="the higher of the 10 least attended and of permuted labels",
            direction="above",
        ),
        Claim(
            name=f"training brings attention to the same {name}",
            sentence=f"Training makes the attended instances share the {name} more often.",
            source=f"{PAPER}, figure 3",
            statistic=lambda results: share(results, "top").mean("layer"),
            about=f"share of the 10 most attended instances with the query's {name}, mean over layers",
            control=lambda results: share(results, "top_untrained").mean("layer"),
            control_about="the same instances and queries, read by the untrained model",
            direction="above",
        ),
        Claim(
            name=f"attention to the same {name} differs by layer",
            sentence=f"Training makes layers differ in how often the attended instances share the {name}.",
            source=f"{PAPER}, figure 3, in our words",
            statistic=lambda results: spread(results, "top"),
            about="highest minus lowest share of a layer's attention map, of those that read the stream",
            control=lambda results: spread(results, "top_untrained"),
            control_about="the same instances and queries, read by the untrained model",
            direction="above",
        ),
    )


def _norms(prefix: str, where: str) -> tuple[Claim, ...]:
    """The special characteristic of the norms, as we read it."""

    def variation(results: Results) -> xr.DataArray:
        return results[f"{prefix}norms"]["variation"]

    return (
        Claim(
            name=f"{where}norms get alike with depth",
            sentence=_said(where, "Norms of tokens vary less after the last layer than at the embedding."),
            source=f"{PAPER}: a special characteristic of the norms; {OURS} in this form",
            statistic=lambda results: last(variation(results)).isel(layer=-1, drop=True),
            about="coefficient of variation of the norm over tokens after the last layer, sinks apart",
            control=lambda results: last(variation(results)).isel(layer=0, drop=True),
            control_about="the same at the embedding",
            direction="below",
        ),
        Claim(
            name=f"{where}norms get alike with training",
            sentence=_said(where, "Norms of tokens vary less in the trained model than in the untrained one."),
            source=OURS,
            statistic=lambda results: last(variation(results)).mean("layer"),
            about="coefficient of variation of the norm over tokens, mean over depths, sinks apart",
            control=lambda results: untrained(variation(results)).mean("layer"),
            control_about="the same in the untrained model",
            direction="below",
        ),
    )


def _gram() -> tuple[Claim, ...]:
    """What the proposition is about."""

    def gain(results: Results, kind: str = "") -> xr.DataArray:
        found = last(results["gram"][f"gain{kind}"])
        return xr.apply_ufunc(np.log10, found).mean(("layer", "map"))

    def observed(results: Results, name: str) -> xr.DataArray:
        return last(results["gram"][name]) / last(results["gram"]["observed_norm"])

    return (
        Claim(
            name="norms follow from the Gram matrix",
            sentence="The norm of what a map gives follows from where its input lies along the eigenvectors of WᵀW.",
            source=f"{PAPER}: the idea of the proposition; an identity, and so a check of the measure",
            statistic=lambda results: abs(observed(results, "predicted_norm") - 1).max(("layer", "map")),
            about="largest relative error of the root mean square norm predicted from eigenvalues and energies",
            control=lambda results: abs(last(results["gram"]["gain"]) ** -0.5 - 1).min(("layer", "map")),
            control_about="the smallest if inputs are taken to lie alike along all eigenvectors",
            direction="below",
            bound=ROUNDING,
        ),
        Claim(
            name="inputs lie along long directions",
            sentence="What maps read lies along directions in which they lengthen it.",
            source=OURS,
            statistic=gain,
            about="log10 of the squared norm over that of inputs turned at random, mean over maps",
            control=lambda results: gain(results, "_high"),
            control_about="the upper edge of its band with inputs turned at random",
            direction="above",
        ),
    )


def _readout(prefix: str, where: str, lens: str) -> tuple[Claim, ...]:
    """Whether every layer knows more of the next token than the one before."""
    return (
        Claim(
            name=f"{where}read-out improves from layer to layer: {lens} lens",
            sentence=_said(where, f"The loss of the {lens} lens falls from each depth to the next."),
            source=f"{OURS}: the outer loss read at every layer",
            statistic=lambda results: _falling(last(results[f"{prefix}{lens}_lens"]["loss"])),
            about="share of adjacent depths at which the loss falls",
            control=lambda results: _falling(untrained(results[f"{prefix}{lens}_lens"]["loss"])),
            control_about="the same in the untrained model",
            direction="above",
            bound=MOST_PAIRS,
        ),
    )


def _said(where: str, sentence: str) -> str:
    """A sentence about one setting."""
    return f"{where[0].upper()}{where[1:]}{sentence[0].lower()}{sentence[1:]}" if where else sentence


def _over(results: Results, predictor: str, oracle: str) -> xr.DataArray:
    """A predictor's loss over an oracle's, at the positions that are scored."""
    error = last(results["behaviour"]["scored"])
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor=oracle, drop=True)


def _halves(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The means over the lower and the upper half of the depths; one in the middle is in neither."""
    count = values.sizes["layer"]
    half: Sequence[slice] = (slice(0, count // 2), slice(count - count // 2, None))
    lower, upper = (values.isel(layer=part).mean("layer") for part in half)
    return lower, upper


def _falling(values: xr.DataArray) -> xr.DataArray:
    """The share of adjacent places along ``layer`` at which a value falls."""
    steps = np.diff(values.values, axis=values.get_axis_num("layer"))
    return xr.DataArray(steps < 0, dims=values.dims).mean("layer")
