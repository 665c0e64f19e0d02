"""One run and its folder: from a spec to its record, and who may write there."""
