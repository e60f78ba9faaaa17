"""Attention functions and module hooks: everything that depends on private conventions of transformers."""
