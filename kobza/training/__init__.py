"""Training: a model from a text, or a model adapted to one; one loop, the held-out figure from the first step on."""
