"""Garg et al. 2022: function classes in context."""
