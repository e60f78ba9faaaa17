"""Function classes in context: linear and sparse linear functions, two-layer networks, decision trees.

Garg et al. 2022 (arXiv 2208.01066): a transformer trained on contexts of pairs (x, f(x)), with a new f of one class in
each, predicts as well as an algorithm designed for the class. The paper trains 12 layers of width 256 on functions of
20 inputs with 40 pairs and more, with a curriculum; the sizes here are ours.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.function_classes.citation import CITATION
from mesascope.studies.function_classes.claims import function_class_claims
from mesascope.studies.shared.icl import make_icl_training, make_regression_decoder
from mesascope.tasks.functions import DecisionTrees, LinearFunctions, TwoLayerNetworks
from mesascope.tasks.regression import Regression

# All dimensions, context lengths and function classes' sizes are ours.
LINEAR_TASK = Regression(dim=4, num_examples=8)
SPARSE_TASK = Regression(dim=6, num_examples=10, functions=LinearFunctions(num_nonzero=1))
NETWORK_TASK = Regression(dim=4, num_examples=12, functions=TwoLayerNetworks(num_hidden=4))
TREE_TASK = Regression(dim=4, num_examples=12, functions=DecisionTrees(depth=2))
LINEAR_ALGORITHMS = replace(
    analyses.which_algorithm.using(layers=False),
    name="linear_algorithms",
    title="Nearest algorithm for linear functions",
)

SCALES = {
    "smoke": ScaleConfig(training=make_icl_training(10, checkpoints=2), sequences=32),
    "laptop": ScaleConfig(training=make_icl_training(4_000), sequences=256),
    "paper": ScaleConfig(training=make_icl_training(60_000), sequences=1024),
}


def _make_scales(task: Regression) -> dict[str, ScaleConfig]:
    # Nothing is learned at smoke scale, so contexts are short.
    return SCALES | {"smoke": replace(SCALES["smoke"], task=replace(task, num_examples=3))}


# Trees are fitted to every context: 4,096 sequences take 11 minutes per seed on one core.
TREE_SCALES = _make_scales(TREE_TASK) | {"laptop": replace(SCALES["laptop"], evaluation_sequences=1_024)}

STUDY = Study(
    name="function-classes",
    title="In-context learning of four function classes",
    description=(
        "A context consists of pairs of an input and the value of a function, which is drawn anew for each context. A "
        "four-layer decoder is trained to predict the values of linear functions, sparse linear functions, networks "
        "with one hidden layer and decision trees. The classes and the baselines are the paper's; sizes, training "
        "and thresholds are ours, and pilot runs were seen before sizes and claims were fixed. Requirements, margins "
        "and controls were revised after a run. Nonlinear baselines (networks, trees) are fitted to every context "
        "and plotted with the model's error."
    ),
    citation=CITATION,
    conditions=(
        Condition(
            task=LINEAR_TASK,
            model=make_regression_decoder(LINEAR_TASK, 4),
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                analyses.which_algorithm,
            ),
        ),
        Condition(
            name="sparse",
            title="sparse linear functions",
            task=SPARSE_TASK,
            model=make_regression_decoder(SPARSE_TASK, 4),
            scales=_make_scales(SPARSE_TASK),
            analyses=(
                analyses.loss_vs_baselines,
                analyses.which_algorithm,
            ),
        ),
        Condition(
            name="network",
            title="two-layer networks",
            task=NETWORK_TASK,
            model=make_regression_decoder(NETWORK_TASK, 4),
            scales=_make_scales(NETWORK_TASK),
            analyses=(
                analyses.loss_vs_baselines,
                LINEAR_ALGORITHMS,
            ),
        ),
        Condition(
            name="tree",
            title="decision trees",
            task=TREE_TASK,
            model=make_regression_decoder(TREE_TASK, 4),
            scales=TREE_SCALES,
            analyses=(analyses.loss_vs_baselines,),
        ),
    ),
    claims=function_class_claims(),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.5, "laptop": 50.0, "paper": 900.0},
)
