"""What a run that kept its weights gives: a model, predictions, folders for other libraries."""
