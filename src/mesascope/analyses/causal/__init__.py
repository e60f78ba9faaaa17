"""What heads, layers and positions are worth: analyses that change the model."""
