"""One self-contained page per run; it reads the run and nothing else."""
