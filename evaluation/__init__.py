"""Testing models: error counts, views, ensembles, predictions."""
