"""Wu & Varshney 2024: a meta-learning perspective on transformers."""
