"""Fu et al. 2024: layers against Newton's iteration."""
