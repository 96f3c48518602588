"""Texts to ids and back, in exact bytes."""
