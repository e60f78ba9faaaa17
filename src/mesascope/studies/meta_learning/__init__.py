"""Wu & Varshney 2023: a meta-learning perspective on transformers."""
