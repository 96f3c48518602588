"""Edits: techniques that change a model's weights and return a fork; `apply(model, *, ...) -> Model`."""
