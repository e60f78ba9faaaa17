"""Models whose layers are read from their files while they run."""
