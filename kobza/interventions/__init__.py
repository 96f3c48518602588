"""Interventions: change what happens inside a run and see what follows, with controls."""
