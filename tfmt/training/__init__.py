"""One run: strategy, steps, checkpoints, proof."""
