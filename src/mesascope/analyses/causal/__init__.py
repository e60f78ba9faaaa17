"""Analyses that edit the model: ablation, pruning, masking and scaling."""
