"""Wang et al. 2024: emergence of induction heads."""
