"""Which weights train, and the optimizer that trains exactly these."""
