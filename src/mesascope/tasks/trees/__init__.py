"""Path finding in binary trees."""
