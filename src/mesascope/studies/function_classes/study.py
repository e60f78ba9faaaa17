"""What transformers can learn in context: linear, sparse linear, two-layer network and decision-tree functions.

Garg et al. 2022 (arXiv 2208.01066): trained on prompts of pairs (x, f(x)) with a fresh f of one class in each, a
transformer predicts as well as a learner that is made for the class. There, 12 layers of width 256 learn functions of
20 inputs from 40 pairs and more, with a curriculum; the sizes here are ours.
"""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.studies.base import Arm, Citation, Claim, Results, Scale, Setup, Study, last, untrained
from mesascope.studies.shared.icl import ALIKE, decoder, least_squares_claim, training
from mesascope.studies.shared.selectors import likeness, likeness_elsewhere
from mesascope.tasks.functions import Linear, Trees, TwoLayers
from mesascope.tasks.regression import Regression

PAPER = "Garg et al. 2022"
LINEAR = Regression(dim=4, examples_shown=8)  # this and what follows: ours
SPARSE = Regression(dim=6, examples_shown=10, functions=Linear(nonzero=1))
NETWORK = Regression(dim=4, examples_shown=12, functions=TwoLayers(hidden=4))
TREE = Regression(dim=4, examples_shown=12, functions=Trees(depth=2))
SHIFTED = ("inputs twice as large", "correlated inputs")  # on noise, least squares itself has no bounded error
LATE = slice(-4, None)  # the last four places: before, learners know hardly anything
LITTLE = 0.1  # of the error of predicting nothing
COMPARABLE = 1.2  # times the error of the learner
RULES = replace(
    analyses.which_algorithm.using(layers=False),
    name="linear_algorithms",
    title="Which algorithm, of those for linear functions",
)


SCALES = {
    "smoke": Scale(seeds=2, training=training(10, checkpoints=2), sequences=32, minutes=0.5),
    "laptop": Scale(training=training(4_000), sequences=256, minutes=20.0),
    "paper": Scale(training=training(60_000), seeds=8, sequences=1024, minutes=900.0),
}


def setups(task: Regression) -> dict[str, Setup]:
    """As for the linear functions, with shorter prompts at smoke scale, where nothing is learned."""
    found = {name: Setup(training=scale.training, sequences=scale.sequences) for name, scale in SCALES.items()}
    return found | {"smoke": replace(found["smoke"], task=replace(task, examples_shown=3))}


def _over_all(results: Results, arm: str = "") -> xr.DataArray:
    """The trained model's error over that of least squares, over all places."""
    error = last(results[f"{arm}behaviour"]["scored"])
    return error.sel(predictor="model", drop=True) / error.sel(predictor="least squares", drop=True)


def _late(results: Results, arm: str, learner: str, predictor: str = "model", *, at=last) -> xr.DataArray:
    """A predictor's error over that of a learner, over the last places; of the trained model unless told."""
    error = at(results[f"{arm}_behaviour"]["error"]).isel(pos=LATE).mean("pos")
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor=learner, drop=True)


def _better(name: str, sentence: str, learner: str, source: str = PAPER) -> Claim:
    """Whether a model errs less on trees than a learner that is fitted to the prompt."""
    return Claim(
        name=name,
        sentence=sentence,
        source=source,
        statistic=lambda results: _late(results, "tree", learner),
        about=f"its error over that of the {learner}, over the last four places",
        control=lambda results: _late(results, "tree", learner, at=untrained),
        control_about="the same for the untrained model",
        direction="below",
        bound=1.0,
    )


def _at_the_end(results: Results, predictor: str) -> xr.DataArray:
    """The error after all pairs, as a share of what predicting 0 costs there."""
    error = last(results["behaviour"]["error"]).isel(pos=-1, drop=True)
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor="zero", drop=True)


STUDY = Study(
    name="function-classes",
    title="What can be learned in context: four classes of functions",
    about=(
        "Prompts show pairs of an input and its answer under a function that is fresh in every prompt, and a "
        "four-layer decoder is trained to answer: for linear functions, for sparse linear ones, for networks with one "
        "hidden layer and for decision trees. The classes and what models are held against are the paper's; sizes, "
        "training and thresholds are ours, and pilots were seen before sizes and claims were fixed. "
        "Learners that are not of a linear rule are fitted to every prompt anew, and stand beside the model's error."
    ),
    citation=Citation(
        key="garg2022what",
        authors="Garg, Shivam and Tsipras, Dimitris and Liang, Percy and Valiant, Gregory",
        title="What Can Transformers Learn In-Context? A Case Study of Simple Function Classes",
        year=2022,
        venue="NeurIPS 2022; arXiv:2208.01066",
        url="https://arxiv.org/abs/2208.01066",
    ),
    task=LINEAR,
    model=decoder(LINEAR, 4),
    scales=SCALES,
    measures=(analyses.behaviour,),
    sweeps=(analyses.which_algorithm,),
    arms=(
        Arm(
            name="sparse",
            title="sparse linear functions",
            task=SPARSE,
            model=decoder(SPARSE, 4),
            setups=setups(SPARSE),
            measures=(analyses.behaviour,),
            sweeps=(analyses.which_algorithm,),
        ),
        Arm(
            name="network",
            title="two-layer networks",
            task=NETWORK,
            model=decoder(NETWORK, 4),
            setups=setups(NETWORK),
            measures=(analyses.behaviour,),
            sweeps=(RULES,),
        ),
        Arm(
            name="tree",
            title="decision trees",
            task=TREE,
            model=decoder(TREE, 4),
            setups=setups(TREE),
            measures=(analyses.behaviour,),
        ),
    ),
    claims=(
        least_squares_claim(
            "linear: least squares",
            "Trained on linear functions, the model predicts what least squares predicts.",
            PAPER,
        ),
        Claim(
            name="linear: learned",
            sentence="After twice as many pairs as coordinates the model knows the function.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _at_the_end(results, "model"),
            about="squared error at the last place over that of predicting 0",
            control=lambda results: _at_the_end(results, "averaging"),
            control_about="the same for averaging input times answer",
            direction="below",
            bound=LITTLE,
        ),
        Claim(
            name="linear: elsewhere too",
            sentence="The model predicts what least squares predicts on correlated inputs and on larger ones, too.",
            source=f"{PAPER}, which finds it robust to most shifts; the threshold is ours",
            statistic=lambda results: likeness_elsewhere(results, "least squares", SHIFTED),
            about="the least share of the variance that least squares explains over the two",
            control=lambda results: likeness_elsewhere(results, "nearest neighbours", SHIFTED),
            control_about="the same for the nearest neighbours",
            direction="above",
            bound=ALIKE,
        ),
        Claim(
            name="sparse: better than least squares",
            sentence="Trained on sparse functions, it errs less than least squares, which does not know of sparsity.",
            source=PAPER,
            statistic=lambda results: _over_all(results, "sparse_"),
            about="its error over that of least squares, over all places",
            control=_over_all,
            control_about="the same on dense functions, where least squares is best",
            direction="below",
            bound=1.0,
        ),
        Claim(
            name="sparse: like the lasso",
            sentence="What it predicts then is nearer to the lasso than to least squares.",
            source=f"{PAPER}, of errors",
            statistic=lambda results: last(likeness(results, "lasso", result="sparse_which_algorithm")),
            about="share of the variance of its predictions that the fitted lasso explains",
            control=lambda results: last(likeness(results, "least squares", result="sparse_which_algorithm")),
            control_about="the same for least squares",
            direction="above",
        ),
        Claim(
            name="networks: as good as training one",
            sentence="Trained on networks, it errs about as much as a network that is trained on the prompt's pairs.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _late(results, "network", "trained network"),
            about="its error over that of the network, over the last four places",
            control=lambda results: _late(results, "network", "trained network", "3 nearest neighbours"),
            control_about="the same for the mean of 3 nearest neighbours",
            direction="below",
            bound=COMPARABLE,
        ),
        Claim(
            name="networks: linear functions, too",
            sentence="Trained on networks, it predicts what least squares predicts where functions are linear instead.",
            source=f"{PAPER}, of errors; the threshold is ours",
            statistic=lambda results: last(
                likeness(results, "least squares", setting="linear functions", result="network_linear_algorithms")
            ),
            about="share of the variance of its predictions on linear functions that least squares explains",
            control=lambda results: last(
                likeness(results, "nearest neighbours", setting="linear functions", result="network_linear_algorithms")
            ),
            control_about="the same for the nearest neighbours",
            direction="above",
            bound=ALIKE,
        ),
        _better(
            "trees: better than greedy trees",
            "Trained on decision trees, it errs less than a tree grown greedily on the prompt's pairs.",
            "greedy tree",
        ),
        _better(
            "trees: better than greedy trees that see signs",
            "Trained on decision trees, it errs less than such a tree that is told that only signs matter.",
            "greedy tree of signs",
        ),
        _better(
            "trees: better than boosted trees",
            "Trained on decision trees, it errs less than boosted trees, too.",
            "boosted trees",
            f"{PAPER}, of XGBoost; here it is scikit-learn's boosting",
        ),
    ),
)
