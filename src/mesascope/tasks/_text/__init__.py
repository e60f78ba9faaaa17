"""Reading, tokenizing and counting of text."""
