"""The models of Hugging Face that tfmt tunes, and the one table of their weights."""
