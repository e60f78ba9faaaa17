"""The private conventions of transformers: attention functions and module hooks."""
