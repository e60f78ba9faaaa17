"""What several heads are for in sparse regression: the first layer preprocesses with all of them, later ones need one.

Chen, Zhao and Zou 2024 (arXiv 2408.04532). Their mechanism is an algorithm, which is run here by itself: every
coordinate of the inputs is multiplied with its mean product with the answers, and gradient descent goes on from there.
Beside it, three layers of linear attention without anything else, as in the theory, are trained with eight heads and
with one of the same width, on sparse rules and on dense ones. Sizes, training and thresholds are ours: sizes after
pilots with another seed, in which eight heads erred 0.72 times as much as one; thresholds before this was run.
"""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.pruning import ALL, FIRST, LATER, SINGLE, SWAPPED, pruning
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Arm, Citation, Claim, Results, Scale, Setup, Study, Theory, last, untrained
from mesascope.studies.shared.selectors import likeness
from mesascope.studies.sparse_regression_heads.toy_model import SETTINGS, STOPPED, SparseDescent
from mesascope.tasks.functions import Linear
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, Cosine, Training

PAPER = "Chen et al. 2024"
OURS = "ours"
PLAIN, PREPROCESSED, RIDGE, LASSO = STOPPED
HEADS = 8  # ours: one or more for each coordinate
TASK = Regression(
    dim=6,  # this and what follows: ours
    examples_shown=8,
    layout="joined",
    functions=Linear(nonzero=1),
    scale=0.3,  # linear attention grows with the cube of its inputs: smaller ones do not run away at the start
    noise=0.075,  # a quarter of the answers
)
DENSE = replace(TASK, functions=Linear())
SHAPE = {
    "d_in": TASK.width,
    "d_out": 1,
    "num_hidden_layers": 3,  # as in one of the paper's figures
    "hidden_size": 64,  # ours: each of eight heads has room for all coordinates
    "intermediate_size": 0,  # as in the theory
    "attention": "linear",
    "visible": "shown",
    "norm": "none",
    "positions": "none",
    "max_position_embeddings": 4 * TASK.length,
    "initializer_writes": 0.1,
}
MANY = DecoderConfig(num_attention_heads=HEADS, **SHAPE)
ONE = DecoderConfig(num_attention_heads=1, **SHAPE)

REVERSED = next(one.name for one in SETTINGS if one.examples > one.features and not one.noise)
HELPED = [one.name for one in SETTINGS if one.name != REVERSED]
KNOWN = [one.name for one in SETTINGS if one.examples >= one.features and one.noise]  # noisy, with d <= n
EARLY = slice(1, 6)  # the first five steps
BETTER = 0.8  # of the risk; ours
WITHIN = 2.0  # times the risk of the lasso: up to logarithms; ours
LITTLE = 0.1  # of the gap; ours
READ = 0.5  # of the variance; ours


def training(steps: int, checkpoints: int) -> Training:
    """All ours."""
    return Training(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0),
        warmup=min(300, steps // 5),
        schedule=Cosine(),
        clip=1.0,
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": Scale(training=training(20, 2), seeds=2, sequences=64, minutes=0.5),
    "laptop": Scale(training=training(2_000, 4), sequences=2048, minutes=5.0),
    "paper": Scale(training=training(30_000, 6), seeds=8, sequences=8192, minutes=240.0),
}
SETUPS = {name: Setup(training=scale.training, sequences=scale.sequences) for name, scale in SCALES.items()}
READINGS = (analyses.behaviour, analyses.preprocessing)
BY_EXAMPLES = analyses.excess_by_examples.using(counts=(2, 4, 6, 8, 12, 16))
PRUNED = pruning.using(first=TASK.examples_shown)
WHICH = replace(analyses.which_algorithm.using(layers=False, elsewhere=False), steps="last")


def _arm(name: str, title: str, task: Regression, model: DecoderConfig) -> Arm:
    """Another setting, opened alike; heads are pruned where there are several."""
    sweeps = (BY_EXAMPLES, *([PRUNED] if model.num_attention_heads > 1 else []))
    return Arm(name=name, title=title, task=task, model=model, setups=SETUPS, measures=READINGS, sweeps=sweeps)


def _risk(results: Results, arm: str) -> xr.DataArray:
    """The trained model's squared error less that of the noise."""
    return last(results[f"{arm}behaviour"]["scored"]).sel(predictor="model", drop=True) - TASK.noise**2


def _more_heads(results: Results, arms: tuple[str, str]) -> xr.DataArray:
    """The risk with many heads over that with one."""
    many, one = (_risk(results, arm) for arm in arms)
    return many / one


def _stopped(results: Results, predictor: str, beside: str, settings: list[str]) -> xr.DataArray:
    """The largest ratio of two best risks over some settings."""
    found = results["preprocess_then_optimise"]["best"].sel(setting=settings)
    return (found.sel(predictor=predictor, drop=True) / found.sel(predictor=beside, drop=True)).max("setting")


def _least(results: Results, predictor: str, beside: str, settings: list[str]) -> xr.DataArray:
    """The smallest one."""
    return 1 / _stopped(results, beside, predictor, settings)


def _on_the_way(results: Results, steps: slice | int) -> xr.DataArray:
    """The largest ratio of both descents' risks after the same number of steps, over settings and steps."""
    found = results["preprocess_then_optimise"]["ratio"].isel(_steps=steps, drop=True).max("setting")
    return found.max("_steps") if "_steps" in found.dims else found


def _spread_first(results: Results, kind: str, arm: str = "", *, at=last) -> xr.DataArray:
    """By how much more evenly damage is spread over the heads of the first layer than over those of later ones."""
    found = at(results[f"{arm}pruning"]["spread"]).sel(stat=kind, drop=True)
    return found.sel(layer=0, drop=True) - found.sel(layer=slice(1, None)).mean("layer")


def _cost(results: Results, kind: str, kept: str) -> xr.DataArray:
    """The rise of the loss when so many heads are kept, as a share of its rise when one is kept in each layer."""
    found = last(results["pruning"][f"kept_{kind}"])
    rise = found - found.sel(component=ALL, drop=True)
    return rise.sel(component=kept, drop=True) / rise.sel(component=SINGLE, drop=True)


def _read(results: Results, depth: str, *, at=last) -> xr.DataArray:
    """How well the products can be read at a depth."""
    return at(results["preprocessing"]["explained"]).sel(layer=depth, drop=True)


def _spread_claims(kind: str) -> tuple[Claim, ...]:
    """Whether importance is spread in the first layer and peaked in later ones, by one way of taking heads away."""
    about = f"normalised entropy of the damage by {kind} ablation in the first layer minus the mean of later ones"
    return (
        Claim(
            name=f"spread first, peaked later: {kind} ablation",
            sentence=f"All heads of the first layer matter, while in each later layer few do ({kind} ablation).",
            source=f"{PAPER}, which masks heads; that heads are replaced by their {kind} is {OURS}",
            statistic=lambda results: _spread_first(results, kind),
            about=about,
            control=lambda results: _spread_first(results, kind, at=untrained),
            control_about="the same in the untrained model",
            direction="above",
            bound=0.0,
        ),
        Claim(
            name=f"more so for sparse rules: {kind} ablation",
            sentence=f"Importance is spread further towards the first layer if rules are sparse ({kind} ablation).",
            source=f"{OURS}: dense rules need no preprocessing",
            statistic=lambda results: _spread_first(results, kind),
            about=about,
            control=lambda results: _spread_first(results, kind, "dense_"),
            control_about="the same in models trained on dense rules",
            direction="above",
        ),
        Claim(
            name=f"later layers need one head: {kind} ablation",
            sentence=f"All heads of the first layer and one in each later layer do nearly as well ({kind} ablation).",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _cost(results, kind, FIRST),
            about="rise of the loss as a share of its rise when one head is kept in each layer, that one too",
            control=lambda results: _cost(results, kind, SWAPPED),
            control_about="the same with one head in the first layer, and as many in all",
            direction="below",
            bound=LITTLE,
        ),
        Claim(
            name=f"and not the other way round: {kind} ablation",
            sentence=f"It is better to keep all heads of the first layer than all of later ones ({kind} ablation).",
            source=f"{PAPER}, in our words",
            statistic=lambda results: _cost(results, kind, FIRST),
            about="rise of the loss as a share of its rise when one head is kept in each layer",
            control=lambda results: _cost(results, kind, LATER),
            control_about="the same with one head in the first layer and all in later ones: more heads in all",
            direction="below",
        ),
    )


STUDY = Study(
    name="sparse-regression-heads",
    title="What several heads are for in sparse regression",
    about=(
        "A prompt shows inputs with their noisy answers by a rule that few coordinates enter, and asks for one more. "
        "The paper finds that the first layer of a trained transformer preprocesses the inputs, with all its heads, "
        "and that later layers optimise, each with one. The algorithm is run by itself in five settings, one of which "
        "turns it round; three layers of linear attention are trained with eight heads and with one. The paper's sizes "
        "were not found: it is a re-run of its setting with sizes of ours, and claims are worded from its abstract."
    ),
    citation=Citation(
        key="chen2024transformers",
        authors="Chen, Xingwu and Zhao, Lei and Zou, Difan",
        title="How Transformers Utilize Multi-Head Attention in In-Context Learning? A Case Study on Sparse Linear "
        "Regression",
        year=2024,
        venue="NeurIPS 2024; arXiv:2408.04532",
        url="https://arxiv.org/abs/2408.04532",
    ),
    task=TASK,
    model=MANY,
    scales=SCALES,
    measures=(*READINGS, inner(objectives.fast_weight)),
    sweeps=(BY_EXAMPLES, PRUNED, WHICH, ablation.using(first=TASK.examples_shown, groups=False)),
    arms=(
        _arm("single", "one head", TASK, ONE),
        _arm("dense", "dense rules", DENSE, MANY),
        _arm("dense_single", "dense rules, one head", DENSE, ONE),
    ),
    theories=(
        Theory(
            name="preprocess_then_optimise",
            title="Preprocess, then optimise: the algorithm by itself",
            setups={
                "smoke": SparseDescent(steps=20, problems=8),
                "laptop": SparseDescent(problems=300),
                "paper": SparseDescent(problems=3_000, steps=1_000),
            },
            order=1,
        ),
    ),
    claims=(
        Claim(
            name="algorithm: preprocessing helps",
            sentence="With noise, or with fewer examples than coordinates, preprocessing makes descent err less.",
            source=f"{PAPER}; the four settings are ours",
            statistic=lambda results: _stopped(results, PREPROCESSED, PLAIN, HELPED),
            about="largest ratio over four settings of the best risk with preprocessing to that without",
            control=lambda results: _stopped(results, PREPROCESSED, PLAIN, [REVERSED]),
            control_about="the same without noise and with more examples than coordinates",
            direction="below",
            bound=1.0,
        ),
        Claim(
            name="algorithm: better than ridge regression",
            sentence="With noise, or with fewer examples than coordinates, it errs less than ridge regression, too.",
            source=PAPER,
            statistic=lambda results: _stopped(results, PREPROCESSED, RIDGE, HELPED),
            about="largest ratio over four settings of the best risk with preprocessing to that of ridge regression",
            control=lambda results: _stopped(results, PLAIN, RIDGE, HELPED),
            control_about="the same for descent without preprocessing",
            direction="below",
            bound=1.0,
        ),
        Claim(
            name="algorithm: in the way without noise",
            sentence="Without noise, and with more examples than coordinates, preprocessing is in the way.",
            source=f"{OURS}: where plain descent comes to the rule itself, there is nothing to gain",
            statistic=lambda results: _least(results, PREPROCESSED, PLAIN, [REVERSED]),
            about="ratio of the best risk with preprocessing to that without, in that setting",
            control=lambda results: _stopped(results, PREPROCESSED, PLAIN, HELPED),
            control_about="the largest in the four other settings",
            direction="above",
            bound=1.0,
        ),
        Claim(
            name="algorithm: the first steps are better everywhere",
            sentence="Stopped after the same few steps, five at most, descent errs less with preprocessing everywhere.",
            source=f"{OURS}: what a model of few layers can gain",
            statistic=lambda results: _on_the_way(results, EARLY),
            about="largest ratio of both risks after the same number of steps, over five steps and five settings",
            control=lambda results: _on_the_way(results, -1),
            control_about="the same after the last step",
            direction="below",
            bound=1.0,
        ),
        Claim(
            name="algorithm: comparable to the lasso",
            sentence="With noise, and no fewer examples than coordinates, it errs about as much as the lasso.",
            source=f"{PAPER}, up to logarithms; the threshold is ours",
            statistic=lambda results: _stopped(results, PREPROCESSED, LASSO, KNOWN),
            about="largest ratio over two settings of the best risk with preprocessing to that of the lasso",
            control=lambda results: _stopped(results, PLAIN, LASSO, KNOWN),
            control_about="the same for descent without preprocessing",
            direction="below",
            bound=WITHIN,
        ),
        Claim(
            name="more heads help",
            sentence="Trained on sparse rules, a model with eight heads errs less than one with a single head as wide.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _more_heads(results, ("", "single_")),
            about="excess risk with eight heads over that with one",
            control=lambda results: xr.ones_like(_more_heads(results, ("", "single_"))),
            control_about="as much as one head: 1",
            direction="below",
            bound=BETTER,
        ),
        Claim(
            name="more so for sparse rules",
            sentence="Eight heads in place of one help more where rules are sparse than where they are dense.",
            source=f"{OURS}: what heads are for, if it is preprocessing",
            statistic=lambda results: _more_heads(results, ("", "single_")),
            about="excess risk with eight heads over that with one",
            control=lambda results: _more_heads(results, ("dense_", "dense_single_")),
            control_about="the same for models of dense rules",
            direction="below",
        ),
        *_spread_claims("mean"),
        *_spread_claims("zero"),
        Claim(
            name="the first layer preprocesses",
            sentence="After the first layer, products of coordinates with their r_j can be read from the stream.",
            source=f"{PAPER}, which probes layers; the reading and the threshold are ours",
            statistic=lambda results: _read(results, "after 0"),
            about="R² of r_j x_j, read where the input is asked, after the first layer",
            control=lambda results: _read(results, "embedding"),
            control_about="the same from the raw input",
            direction="above",
            bound=READ,
        ),
        Claim(
            name="by training",
            sentence="Products of coordinates with their r_j can be read better than before training.",
            source=f"{OURS}: attention of any weights writes products",
            statistic=lambda results: _read(results, "after 0"),
            about="R² of r_j x_j, read where the input is asked, after the first layer",
            control=lambda results: _read(results, "after 0", at=untrained),
            control_about="the same in the untrained model",
            direction="above",
        ),
        Claim(
            name="nearer to preprocessed descent",
            sentence="The model predicts more as gradient descent on preprocessed inputs does than as on raw ones.",
            source=f"{PAPER}, in our words",
            statistic=lambda results: last(likeness(results, PREPROCESSED)),
            about="share of the variance of its predictions that fitted preprocessed descent explains",
            control=lambda results: last(likeness(results, PLAIN)),
            control_about="the same for gradient descent",
            direction="above",
        ),
    ),
)
