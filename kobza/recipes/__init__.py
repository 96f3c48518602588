"""Recipes: open, change, measure as plain data; run once, or swept over ranges with a journal that survives a kill."""
