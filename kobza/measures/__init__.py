"""Measures: one number about a model and a text, with its unit, its spread and how it was taken.

Every technique gives `measure(model, text, *, ...) -> Reading`; see `base.py`.
"""
