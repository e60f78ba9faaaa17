"""How training got there: attention over the training history, parameter norms."""
