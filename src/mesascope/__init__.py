"""mesascope shows which algorithm runs inside a transformer's forward pass, and how it gets there in training."""
