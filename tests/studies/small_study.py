"""A study of one layer that trains for two steps, as a file."""

SMALL_STUDY = """
from dataclasses import replace
from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.affine.study import STUDY as AFFINE, make_affine_training
from mesascope.studies.base import Claim, Condition, Factor, Level, Quantity, ScaleConfig
from mesascope.tasks.affine import Affine

SHAPE = {"d_in": 1, "d_out": 1, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}

def quantity(predictor):
    def read(results):
        error = results["loss_vs_baselines"]["error"].isel(step=-1, drop=True).mean("pos")
        return error.sel(predictor=predictor, drop=True)
    return Quantity(description=predictor, read=read)

CLAIM = Claim(name="worse than copying", statement="It is worse than copying.", source="ours", value=quantity("model"),
              control=quantity("copy"), direction="above", scales=("smoke",))
TRAINING = {name: ScaleConfig(training=make_affine_training(2, checkpoints=2), sequences=16)
            for name in ("smoke", "laptop", "paper")}
STUDY = replace(
    AFFINE, name="small", claims=(CLAIM,), seeds=dict.fromkeys(TRAINING, 1),
    conditions=(Condition(task=Affine(length=5), model=DecoderConfig(**SHAPE), scales=TRAINING,
                          analyses=(analyses.loss_vs_baselines,)),),
    factors=(Factor(name="heads", description="heads per layer", levels=(
        Level(name="2", description="2 heads"),
        Level(name="1", description="1 head", model={"num_attention_heads": 1}))),
        Factor(name="rate", description="gradient clipping", levels=(
        Level(name="usual", description=".002"),
        Level(name="clipped", description="gradients clipped to .5", training={"clip": 0.5})))),
    grid={"laptop": {"heads": ("2", "1")}},
)
"""
