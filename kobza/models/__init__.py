"""Opened models: their matrices, their sites, forward passes, forks and saving."""
