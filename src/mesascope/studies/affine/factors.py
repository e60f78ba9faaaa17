"""Factors of the affine study: choices about the model and the data that the abstract leaves open."""

from mesascope.studies.base import Factor, Level
from mesascope.tasks.distributions import Uniform

WIDTH = 64  # ours

FACTORS = (
    Factor(
        name="block",
        description="norm, MLP and initialisation of a layer",
        levels=(
            Level(name="bare", description="attention only, without norm"),
            Level(
                name="prenorm",
                description="layer norm and MLP as TransformerLens builds them, embedding without bias",
                model={
                    "norm": "layer",
                    "intermediate_size": 4 * WIDTH,
                    "embed_bias": False,
                    "initializer": "normal",
                    "initializer_range": 0.8 * WIDTH**-0.5,
                },
            ),
        ),
    ),
    Factor(
        name="heads",
        description="attention heads per layer",
        levels=(
            Level(name="4", description="4 heads"),
            Level(name="1", description="1 head", model={"num_attention_heads": 1}),
        ),
    ),
    Factor(
        name="range",
        description="range of the slope $a$",
        levels=(
            Level(name="contracting", description="$|a| < 1$"),
            Level(name="growing", description="$|a| < 1.2$", task={"spectral_radius": Uniform(0.0, 1.2)}),
        ),
    ),
)
