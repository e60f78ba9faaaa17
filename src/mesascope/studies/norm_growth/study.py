"""Parameter norm growth: how the norm goes in training, whether it saturates the network, and which heads that leaves.

Merrill, Ramanujan, Goldberg, Schwartz and Smith 2020 (arXiv 2010.09697). Its small language models are re-run in both
forms, the norm on the sum and x + norm(f(x)), and with both masks: a causal one, and that of the paper's code, which
multiplies scores with zeros and ones, so that later positions keep a score of 0 and stay visible. What the derivation
says is simulated beside. Sizes and rates at laptop scale are ours, found with one pilot seed that is none of the
study's; thresholds are ours and were fixed before the study was run, and claims that were worded later say so.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.mask_future import future
from mesascope.analyses.causal.saturation import saturation
from mesascope.analyses.training.parameter_norms import INSIDE
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Arm, Citation, Claim, Results, Scale, Setup, Study, Theory, last, untrained
from mesascope.studies.norm_growth.task import Shuffled
from mesascope.studies.norm_growth.toy_model import PAPERS, PROPORTION, WALK, NormGrowth
from mesascope.tasks.text import Text
from mesascope.train import SGD, AdaFactor, AdamW, Constant, InverseSqrt, Linear, Training
from mesascope.train.optim import Schedule

Moving = AdamW | AdaFactor | SGD
PAPER, OURS = "Merrill et al. 2020", "ours"
THRESHOLD = f"{PAPER}; the threshold is ours"
ADDED = "added after the first run, with one pilot seed seen"
TEXT = Text(vocabulary=300, length=48)  # ours
FEWER = replace(TEXT, characters=100_000)  # ours: what a smoke run can read
WIKITEXT = Text(
    source="hub:Salesforce/wikitext:wikitext-2-raw-v1",  # section 4: WikiText-2 and the Penn Treebank
    instead="prose",
    characters=12_000_000,
    vocabulary=8_192,  # ours
    length=83,  # of the Penn Treebank; 700 on WikiText-2
)
SHAPE = {
    "vocab_size": TEXT.vocabulary,
    "num_hidden_layers": 4,  # ours; 12 in the paper
    "num_attention_heads": 12,  # as in the paper
    "hidden_size": 96,  # ours; 768 in the paper
    "intermediate_size": 64,  # as the paper's 512 to 768
    "activation": "relu",  # as in the paper
    "norm": "layer",
    "norm_position": "post",  # one of the paper's two forms
    "positions": "learned",  # as in the paper
    "max_position_embeddings": TEXT.length,
}
SMALLER = {"num_hidden_layers": 2}  # ours: what a smoke run can open
THEIRS = {
    "vocab_size": WIKITEXT.vocabulary,
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 512,
    "max_position_embeddings": WIKITEXT.length,
}
RATE = 4e-3  # ours: 1e-2, the default of the paper's script, leaves the pilot at the loss of a unigram
ADAMW = AdamW(lr=RATE)  # all else PyTorch's defaults, as in the paper, weight decay 0.01 among them
ADAFACTOR = AdaFactor(lr=5e-2)  # ours, five times T5's; the pilot learns as much as with AdamW
WARMUP = 1 / 12  # of the steps; ours
LATER = 0.2  # of the steps: the first of the paper's five epochs is the early phase
MANY = 5.0  # positions: a head that attends to more does not choose; ours
SOME = 0.05  # of the heads; ours
STRAIGHT = 0.98  # R²; the paper's is 1.00
NEAR_HALF = 0.15  # of the power 1/2; ours
SETTLED = 0.95  # cosine of neighbouring checkpoints; ours
LOW = 0.15  # alignment; where the paper's peaks
SATURATED = 0.9  # cosine; the paper's small language models reach 1.00
NEARLY_ALL = 0.9  # of the attention; ours
NEAR_DERIVED = 0.05  # of the power c / 2; ours


def training(
    steps: int, checkpoints: int, batch_size: int, rule: Moving = ADAMW, schedule: Schedule | None = None
) -> Training:
    """Checkpoints at equal distances, so that updates between them can be compared; no dropout, as in the paper."""
    return Training(
        steps=steps,
        batch_size=batch_size,
        optimizer=rule,
        warmup=round(steps * WARMUP),
        schedule=schedule or Constant(),
        checkpoints=checkpoints,
        spacing="even",
    )


def setups(
    rule: Moving = ADAMW, schedule: Schedule | None = None, *, shuffled: bool = False, **shape
) -> dict[str, Setup]:
    """Smoke, laptop and paper scale of one setting."""
    fewer, theirs = (Shuffled(task=each) if shuffled else each for each in (FEWER, WIKITEXT))
    slower = replace(rule, lr=rule.lr / 4)  # of AdamW: 1e-3, PyTorch's default; of AdaFactor about T5's
    return {
        "smoke": Setup(
            training=training(20, 5, 4, rule, schedule),
            sequences=8,
            task=fewer,
            model=DecoderConfig(**{**SHAPE, **SMALLER, **shape}),
        ),
        "laptop": Setup(training=training(400, 11, 8, rule, schedule), sequences=128),
        "paper": Setup(
            training=training(8_000, 21, 16, slower, schedule),  # batch of 16 and about 5 epochs, as in the paper
            sequences=512,
            task=theirs,
            model=DecoderConfig(**{**SHAPE, **THEIRS, **shape}),
        ),
    }


GROWTH = analyses.growth.using(early=WARMUP)
LOSS = replace(analyses.behaviour, steps="ends")
OPENED = (saturation, future)
OWN = setups()


def _arm(name: str, title: str, rule: Moving = ADAMW, schedule: Schedule | None = None, **shape) -> Arm:
    """The study's own setting with something else about it; opened where its shape is what differs."""
    return Arm(
        name=name,
        title=title,
        task=TEXT,
        model=DecoderConfig(**{**SHAPE, **shape}),
        setups=setups(rule, schedule, **shape),
        measures=(LOSS,),
        sweeps=OPENED if shape else (),
        trails=(GROWTH,),
    )


INVERSE = _arm("inverse", "a rate of 1/√t", schedule=InverseSqrt(early=0.1))
ADAPTED = _arm("adapted", "AdaFactor, a rate of 1/√t", ADAFACTOR, InverseSqrt(early=0.1))
LINEAR = _arm("linear", "a rate that falls to 0 along a line", schedule=Linear())
DECAYED = _arm("decayed", "a weight decay of 1", rule=replace(ADAMW, weight_decay=1.0))
OUTPUT = _arm("output", "x + norm(f(x))", norm_position="output")
ZEROED = _arm("zeroed", "a mask that multiplies", visible="zeroed")
BOTH = _arm("both", "x + norm(f(x)), a mask that multiplies", norm_position="output", visible="zeroed")


def _without_lesson(name: str, title: str, rule: Moving) -> Arm:
    """The study's own setting with targets of other places, of which nothing can be learned."""
    model, other = DecoderConfig(**SHAPE), Shuffled(task=TEXT)
    given = setups(rule, shuffled=True)
    return Arm(name=name, title=title, task=other, model=model, setups=given, trails=(GROWTH,))


RANDOM = _without_lesson("random", "gradient descent on targets of other places", SGD(lr=0.1))  # the rate is ours
SHUFFLED = _without_lesson("shuffled", "targets of other places", ADAMW)


def _of(results: Results, name: str, arm: Arm | None) -> xr.Dataset:
    """What an instrument found in a setting; in the study's own by default."""
    return results[f"{arm.name}_{name}" if arm else name]


def _power(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """The power of the step by which the norm grows."""
    return _of(results, "growth", arm)["exponent"]


def _straight(results: Results, curve: str, arm: Arm) -> xr.DataArray:
    """R² of the norm on a function of the step."""
    return _of(results, "growth", arm)["straight"].sel(_curve=curve, drop=True)


def _logs(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """Logarithms of the norm after the early phase."""
    norm = _of(results, "growth", arm)["norm"].sel(stat=INSIDE, drop=True)
    return xr.apply_ufunc(np.log, norm.sel(step=slice(LATER * int(norm["step"][-1]), None)))


def _rise(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """The logarithm of the norm at the end over that after the early phase."""
    logs = _logs(results, arm)
    return last(logs) - logs.isel(step=0, drop=True)


def _least_rise(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """The least rise of that logarithm from a checkpoint to the next."""
    return _logs(results, arm).diff("step").min("step")


def _saturation(results: Results, arm: Arm | None, trained: bool) -> xr.DataArray:
    """Cosine with the large model, by layer."""
    found = _of(results, "saturation", arm)["cosine"]
    return last(found) if trained else untrained(found)


def _spread_out(results: Results, arm: Arm | None, trained: bool = True) -> xr.DataArray:
    """The share of heads of the large model that attend to more than a few positions."""
    found = _of(results, "saturation", arm)["attended"]
    return ((last(found) if trained else untrained(found)) > MANY).mean(("layer", "head"))


def _theirs_on_later(results: Results, arm: Arm) -> xr.DataArray:
    """The share of attention on later positions of these heads, mean over them; not a number where there are none."""
    found = _of(results, "saturation", arm)
    return last(found["later"].where(found["attended"] > MANY)).mean(("layer", "head"))


def _loss(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """Held-out loss of the trained model."""
    return last(_of(results, "behaviour", arm)["scored"]).sel(predictor="model", drop=True)


def _without_future(results: Results, arm: Arm | None = None) -> xr.DataArray:
    """The rise of the loss when attention to later positions is taken away."""
    return last(_of(results, "future", arm)["rise"])


def _missed(results: Results, derived: bool) -> xr.DataArray:
    """How far the powers of the reduced model are from c / 2, or from 1/2: the worst of them."""
    found = results["moved_vector"]["power_by_constant"]
    return abs(found - (found["_constant"] / 2 if derived else 0.5)).max("_constant")


def _reduced(results: Results, by: str, name: str) -> xr.DataArray:
    """One power of the reduced model."""
    return results["moved_vector"][f"power_by_{by}"].sel({f"_{by}": name}, drop=True)


GROWS = (
    Claim(
        name="the square root of time",
        sentence="Where the learning rate falls as 1/√t, the norm of the parameters grows as √t.",
        source=f"{PAPER}, of T5, whose rate was 1/√t; the threshold is ours",
        statistic=lambda results: _straight(results, "√t", INVERSE),
        about="R² of the affine fit of the norm on √t, rate of 1/√t",
        control=lambda results: _straight(results, "t", INVERSE),
        control_about="the same on t",
        direction="above",
        bound=STRAIGHT,
    ),
    Claim(
        name="its power belongs to that rate",
        sentence="The power of t by which the norm grows is nearer to 1/2 for a rate of 1/√t than for a constant one.",
        source=f"{OURS}: in the paper's derivation the power follows from the rate",
        statistic=lambda results: abs(_power(results, INVERSE) - 0.5),
        about="distance of the best power from 1/2, rate of 1/√t",
        control=lambda results: abs(_power(results) - 0.5),
        control_about="the same for a constant rate",
        direction="below",
        bound=NEAR_HALF,
    ),
    Claim(
        name="the square root of time, AdaFactor",
        sentence="With AdaFactor, whose updates grow with the parameters, the norm grows as √t under a rate of 1/√t.",
        source=f"{PAPER}, of T5, trained with AdaFactor; the threshold is ours, and {ADDED}",
        statistic=lambda results: _straight(results, "√t", ADAPTED),
        about="R² of the affine fit of the norm on √t, AdaFactor, rate of 1/√t",
        control=lambda results: _straight(results, "t", ADAPTED),
        control_about="the same on t",
        direction="above",
        bound=STRAIGHT,
    ),
    Claim(
        name="its power belongs to the optimiser",
        sentence="Under a rate of 1/√t the power of t is nearer to 1/2 with AdaFactor than with AdamW.",
        source=f"{OURS}: the paper's derivation needs updates that grow with the norm; {ADDED}",
        statistic=lambda results: abs(_power(results, ADAPTED) - 0.5),
        about="distance of the best power from 1/2, AdaFactor, rate of 1/√t",
        control=lambda results: abs(_power(results, INVERSE) - 0.5),
        control_about="the same with AdamW",
        direction="below",
        bound=NEAR_HALF,
    ),
    Claim(
        name="a constant rate has a larger power",
        sentence="Under a constant rate the norm grows by a larger power of t than under 1/√t.",
        source=f"{OURS}: in the paper's derivation the power follows from the rate",
        statistic=_power,
        about="best power, constant rate",
        control=lambda results: _power(results, INVERSE),
        control_about="the same for a rate of 1/√t",
        direction="above",
    ),
    Claim(
        name="a rate that goes to 0 has a smaller power",
        sentence="Under a rate that falls to 0 the norm grows by a smaller power of t than under a constant one.",
        source=f"{OURS}: in the paper's derivation the power follows from the rate",
        statistic=lambda results: _power(results, LINEAR),
        about="best power, rate that falls to 0 along a line",
        control=_power,
        control_about="the same for a constant rate",
        direction="below",
    ),
    Claim(
        name="the norm grows all the time",
        sentence="After an early phase the norm grows from each checkpoint to the next.",
        source=f"{PAPER}: AdamW with a weight decay of 0.01",
        statistic=_least_rise,
        about="least rise of the logarithm of the norm between checkpoints after a fifth of the steps",
        control=lambda results: _least_rise(results, DECAYED),
        control_about="the same with a weight decay of 1",
        direction="above",
        bound=0.0,
    ),
    Claim(
        name="the norm grows all the time, x + norm(f(x))",
        sentence="With x + norm(f(x)), too, the norm grows from each checkpoint to the next after an early phase.",
        source=f"{PAPER}: AdamW with a weight decay of 0.01",
        statistic=lambda results: _least_rise(results, OUTPUT),
        about="least rise of the logarithm of the norm between checkpoints after a fifth of the steps, x + norm(f(x))",
        control=lambda results: _least_rise(results, DECAYED),
        control_about="the same with a weight decay of 1, norm on the sum",
        direction="above",
        bound=0.0,
    ),
    Claim(
        name="a large weight decay makes it fall",
        sentence="Where weight decay is large the norm falls.",
        source=f"{PAPER}: there is a threshold; that 1 is beyond it is {OURS}",
        statistic=lambda results: _rise(results, DECAYED),
        about="rise of the logarithm of the norm after a fifth of the steps, weight decay of 1",
        control=_rise,
        control_about="the same with a weight decay of 0.01",
        direction="below",
        bound=0.0,
    ),
    Claim(
        name="it grows because something is learned",
        sentence="The norm grows more than under gradient descent on targets of which nothing can be told.",
        source=f"{OURS}: a control of what training does by itself",
        statistic=_rise,
        about="rise of the logarithm of the norm after a fifth of the steps",
        control=lambda results: _rise(results, RANDOM),
        control_about="the same of gradient descent on targets of other places",
        direction="above",
    ),
    Claim(
        name="it grows because something is learned, one optimiser",
        sentence="The norm grows more than under the same optimiser on targets of which nothing can be told.",
        source=f"{OURS}: gradient descent moves less, whatever the targets are; {ADDED}",
        statistic=_rise,
        about="rise of the logarithm of the norm after a fifth of the steps, AdamW",
        control=lambda results: _rise(results, SHUFFLED),
        control_about="the same of AdamW on targets of other places",
        direction="above",
    ),
    Claim(
        name="the direction settles",
        sentence="Parameters of neighbouring checkpoints become ever more alike in direction.",
        source=f"{PAPER}; the threshold is ours",
        statistic=lambda results: last(results["growth"]["cosine"]),
        about="cosine of the parameters of the last two checkpoints",
        control=lambda results: results["growth"]["cosine"].isel(step=1, drop=True),
        control_about="the same of the first two, between which the rate warms up",
        direction="above",
        bound=SETTLED,
    ),
    Claim(
        name="the direction settles after warm-up",
        sentence="Parameters of neighbouring checkpoints become ever more alike once the rate has reached its peak.",
        source=f"{OURS}: worded after the first run, in which the rate still rose between the first two checkpoints",
        statistic=lambda results: last(results["growth"]["cosine"]),
        about="cosine of the parameters of the last two checkpoints",
        control=lambda results: results["growth"]["cosine"].isel(step=2, drop=True),
        control_about="the same of the second and the third, between which the rate is at its peak",
        direction="above",
        bound=SETTLED,
    ),
    Claim(
        name="updates lie across the parameters",
        sentence="Updates are hardly aligned with the parameters, and ever less.",
        source=f"{PAPER}: the alignment peaks at about 0.15 and tends to 0",
        statistic=lambda results: last(results["growth"]["alignment"]),
        about="cosine of the last update with the parameters",
        control=lambda results: results["growth"]["alignment"].max("step"),
        control_about="the largest of all updates",
        direction="below",
        bound=LOW,
    ),
    Claim(
        name="all matrices grow alike",
        sentence="Matrices grow by one factor, so that a network comes near to its saturated form.",
        source=f"{PAPER}: the premise of a proposition; how alike they must be is ours",
        statistic=lambda results: results["growth"]["spread"],
        about="standard deviation of the logarithms of growth of the matrices of all layers",
        control=lambda results: abs(results["growth"]["rate"].mean(("layer", "map"))) / 4,
        control_about="a quarter of their mean",
        direction="below",
    ),
)
SATURATES = (
    Claim(
        name="training saturates",
        sentence="A trained network is nearer to its saturated form than an untrained one.",
        source=PAPER,
        statistic=lambda results: _saturation(results, None, trained=True).mean("layer"),
        about="cosine with the network whose parameters are a thousand times as large, mean over layers",
        control=lambda results: _saturation(results, None, trained=False).mean("layer"),
        control_about="the same before training",
        direction="above",
    ),
    Claim(
        name="training saturates, x + norm(f(x))",
        sentence="A trained network of the form x + norm(f(x)) is nearer to its saturated form than an untrained one.",
        source=PAPER,
        statistic=lambda results: _saturation(results, OUTPUT, trained=True).mean("layer"),
        about="cosine with the network whose parameters are a thousand times as large, mean over layers, other form",
        control=lambda results: _saturation(results, OUTPUT, trained=False).mean("layer"),
        control_about="the same before training",
        direction="above",
    ),
    Claim(
        name="nearly to the end",
        sentence="A trained small language model is saturated in every layer.",
        source=f"{PAPER}: 1.00; the threshold is ours",
        statistic=lambda results: _saturation(results, None, trained=True).min("layer"),
        about="cosine with the network whose parameters are a thousand times as large, least over layers",
        control=lambda results: _saturation(results, None, trained=False).min("layer"),
        control_about="the same before training",
        direction="above",
        bound=SATURATED,
    ),
)
HEADS = (
    Claim(
        name="two kinds of heads",
        sentence="Some heads of the saturated network attend to one position, and some to about half of all.",
        source=f"{PAPER}, here with a causal mask; the threshold is ours",
        statistic=lambda results: _spread_out(results, None),
        about=f"share of heads that attend to more than {MANY:g} positions in the saturated network, causal mask",
        control=lambda results: _spread_out(results, None, trained=False),
        control_about="the same before training",
        direction="above",
        bound=SOME,
    ),
    Claim(
        name="the second kind comes of the mask",
        sentence="Heads that attend to many positions come about where later scores are set to 0, and not otherwise.",
        source=f"{OURS}: the paper's code multiplies scores with its mask, which leaves later positions visible",
        statistic=lambda results: _spread_out(results, ZEROED),
        about=f"share of heads that attend to more than {MANY:g} positions in the saturated network, later scores 0",
        control=lambda results: _spread_out(results, None),
        control_about="the same with a causal mask",
        direction="above",
        bound=SOME,
    ),
    Claim(
        name="the second kind comes of the mask, x + norm(f(x))",
        sentence="With x + norm(f(x)), too, heads attend to many positions where later scores are 0, not otherwise.",
        source=f"{OURS}: the paper's code multiplies scores with its mask, which leaves later positions visible",
        statistic=lambda results: _spread_out(results, BOTH),
        about=f"share of heads that attend to more than {MANY:g} positions, later scores 0, x + norm(f(x))",
        control=lambda results: _spread_out(results, OUTPUT),
        control_about="the same with a causal mask",
        direction="above",
        bound=SOME,
    ),
    Claim(
        name="it looks at the future",
        sentence="What heads that attend to many positions attend to are later positions.",
        source=f"{OURS}: where all visible scores are below 0, all attention goes to the zeros behind them",
        statistic=lambda results: _theirs_on_later(results, ZEROED),
        about="their share of attention on later positions; no value where there are no such heads",
        control=lambda results: 1 - _theirs_on_later(results, ZEROED),
        control_about="the rest of their attention",
        direction="above",
        bound=NEARLY_ALL,
    ),
    Claim(
        name="its loss is lower",
        sentence="Where later scores are set to 0 the loss is below that of a causal model.",
        source=f"{OURS}: such a loss is not that of a language model",
        statistic=lambda results: _loss(results, ZEROED),
        about="held-out loss, later scores 0",
        control=_loss,
        control_about="the same with a causal mask",
        direction="below",
        unit="nat",
    ),
    Claim(
        name="because it sees what comes",
        sentence="Where later scores are set to 0 a model predicts worse without attention to later positions.",
        source=OURS,
        statistic=lambda results: _without_future(results, ZEROED),
        about="rise of the loss when attention to later positions is taken away, later scores 0",
        control=_without_future,
        control_about="the same with a causal mask, where there is none",
        direction="above",
        bound=0.0,
        unit="nat",
    ),
)
DERIVED = (
    Claim(
        name="derived: the power is c / 2",
        sentence="If updates of the squared size c η² |θ|² lie across the parameters and η is 1/√t, the norm grows as "
        "t^(c/2), which is √t for c = 1 alone.",
        source=f"{PAPER}, worked out; the threshold is ours",
        statistic=lambda results: _missed(results, derived=True),
        about="largest distance of the power from c / 2, reduced model",
        control=lambda results: _missed(results, derived=False),
        control_about="largest distance from 1/2, whatever c is",
        direction="below",
        bound=NEAR_DERIVED,
    ),
    Claim(
        name="derived: it needs updates that grow",
        sentence="The norm of a random walk, whose steps do not grow with it, hardly grows under a rate of 1/√t.",
        source=f"{OURS}: the premise of the derivation, taken away",
        statistic=lambda results: _reduced(results, "size", PROPORTION),
        about="power where updates are in proportion to the norm, reduced model",
        control=lambda results: _reduced(results, "size", WALK),
        control_about="the same where they have one size whatever the norm",
        direction="above",
    ),
    Claim(
        name="derived: it follows from the rate",
        sentence="Under a constant rate such updates make the norm grow by a larger power of t than under 1/√t.",
        source=f"{OURS}: worked out from the paper's derivation",
        statistic=lambda results: _reduced(results, "schedule", "constant"),
        about="power under a constant rate, reduced model",
        control=lambda results: _reduced(results, "schedule", PAPERS),
        control_about="the same under a rate of 1/√t",
        direction="above",
    ),
)

STUDY = Study(
    name="norm-growth",
    title="Parameter norm growth and saturation",
    about=(
        "Small language models on real text, in the paper's two forms (the norm on the sum of stream and sublayer, and "
        "on what a sublayer writes), with a causal mask and with that of the paper's code, which multiplies scores "
        "with zeros and leaves later positions in the softmax. The norm of the parameters is followed under constant, "
        "1/√t and falling rates, under a large weight decay, and with AdaFactor, the optimiser of T5; trained networks "
        "are held against themselves with all parameters a thousand times as large. Kinds of layers, heads, optimiser "
        "and what is measured are the paper's; sizes at laptop scale, rates and thresholds are ours. T5 itself is not "
        "re-run. Checkpoints take 0.8 GB at laptop scale."
    ),
    citation=Citation(
        key="merrill2021effects",
        authors="Merrill, William and Ramanujan, Vivek and Goldberg, Yoav and Schwartz, Roy and Smith, Noah A.",
        title="Effects of Parameter Norm Growth During Transformer Training: Inductive Bias from Gradient Descent",
        year=2021,
        venue="EMNLP 2021; arXiv:2010.09697",
        url="https://arxiv.org/abs/2010.09697",
    ),
    task=TEXT,
    model=DecoderConfig(**SHAPE),
    scales={
        "smoke": Scale(**vars(OWN["smoke"]), seeds=2, minutes=0.7),
        "laptop": Scale(**vars(OWN["laptop"]), minutes=5.0),
        "paper": Scale(**vars(OWN["paper"]), minutes=6_000.0),
    },
    measures=(LOSS,),
    sweeps=OPENED,
    trails=(GROWTH,),
    arms=(INVERSE, ADAPTED, LINEAR, DECAYED, OUTPUT, ZEROED, BOTH, RANDOM, SHUFFLED),
    theories=(
        Theory(
            name="moved_vector",
            title="The reduced model: a vector that is moved",
            setups={
                "smoke": NormGrowth(dimensions=100, steps=200, points=30),
                "laptop": NormGrowth(),
                "paper": NormGrowth(dimensions=20_000, steps=20_000),
            },
            order=4,
        ),
    ),
    claims=(*GROWS, *SATURATES, *HEADS, *DERIVED),
)
