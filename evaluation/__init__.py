"""How a model is judged: error counts, views, ensembles, classes, batch norm re-estimation."""
