"""Testing models: error counts, metrics, views, ensembles, batch norm re-estimation."""
