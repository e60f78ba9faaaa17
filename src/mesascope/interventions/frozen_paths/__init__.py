"""The paths of path patching, and the edits that freeze what is off them."""
