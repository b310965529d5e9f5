"""Layer-only RL training."""
