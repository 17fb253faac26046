"""Searching for the best recipe under a total time: `sweep.py`, built on Optuna."""
