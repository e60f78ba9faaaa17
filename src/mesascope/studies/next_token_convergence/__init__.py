"""Huang et al. 2024: convergence of next-token prediction."""
