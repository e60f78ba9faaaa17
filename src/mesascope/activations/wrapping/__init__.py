"""Plain PyTorch modules as models: `wrap`, and the model class that it returns."""
