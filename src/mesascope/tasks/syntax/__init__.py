"""Transformations of sentences by their dependency trees."""
