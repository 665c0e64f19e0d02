"""A whole study as one HTML page that needs nothing else: facts, claims, tables, figures, and every run."""
