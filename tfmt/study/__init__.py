"""Many runs: the grid of their specs, the processes that execute them, and what a person sees of it."""
