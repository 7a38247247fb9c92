"""How a model is trained and tested, whatever it is: the loop, its metrics, its lines."""
