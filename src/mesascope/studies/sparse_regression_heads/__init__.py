"""Chen et al. 2024: multi-head attention in sparse linear regression."""
