"""Ray Chowdhury & Caragea 2024: recurrent transformers with dynamic halting."""
