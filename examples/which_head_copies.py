"""Find the head that copies the previous term in a model with a known mechanism, by its scores and by ablation."""

import torch

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.tasks.affine import Affine

task = Affine(length=20)
batch = task.sample(128, torch.Generator().manual_seed(0))
model = build_planted_model("previous")

results = analyses.run_analyses(model, batch, [analyses.positional_attention, analyses.value_copying])
effect = head_ablation(model, task, batch, first=2, groups=False)["effect"]
for head in range(4):
    attention = float(results["positional_attention"]["score"].sel(layer=0, head=head, stat="previous"))
    gain = float(results["value_copying"]["gain"].sel(layer=0, head=head))
    increase = float(effect.sel(layer=0, head=head, stat="mean"))
    print(f"head {head}: attention to the previous term {attention:.2f}, gain {gain:+.2f}, ablation {increase:+.4f}")
