"""von Oswald et al. 2023: linear attention and gradient descent."""
