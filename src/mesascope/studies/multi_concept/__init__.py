"""Bu et al. 2024: in-context learning of words with several concepts."""
