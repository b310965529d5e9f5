"""Finds the best layers by a race of short RL runs: pure decisions, and an Optuna study that records them."""
