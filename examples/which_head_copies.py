"""Open a model whose mechanism is known, and find the head that carries it, by role and by effect."""

import torch

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.ground_truth.models.vectors import planted
from mesascope.tasks.affine import Affine

task = Affine(length=20)
batch = task.sample(128, torch.Generator().manual_seed(0))
model = planted("previous")

found = analyses.measure_all(model, batch, [analyses.position, analyses.copying])
cost = ablation(model, task, batch, first=2)["cost"]
for head in range(4):
    looks = float(found["position"]["score"].sel(layer=0, head=head, stat="previous"))
    gain = float(found["copying"]["gain"].sel(layer=0, head=head))
    worth = float(cost.sel(layer=0, head=head, stat="mean"))
    print(f"head {head}: looks at the previous term {looks:.2f}, copies with gain {gain:+.2f}, is worth {worth:+.4f}")
