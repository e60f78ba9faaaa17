"""What attention heads do."""
