"""Decoding: ways to let a model speak.

Every technique gives `generate(model, prompt, *, tokens=64, ...) -> Generation`; see `base.py`.
"""
