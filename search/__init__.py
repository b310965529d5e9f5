"""The race: pure decisions, and the Optuna study that holds them."""
