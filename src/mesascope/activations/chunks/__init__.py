"""Recording and edits of models that process consecutive positions one chunk after the other."""
