"""Chen et al. 2024: what several heads are for in sparse regression."""
