"""Huang et al. 2023: in-context convergence of softmax attention."""
