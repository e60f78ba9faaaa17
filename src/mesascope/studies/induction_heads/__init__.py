"""Wang et al. 2024: how transformers implement induction heads."""
