"""Claims, selectors and settings that several studies share."""
