"""Environments over several turns: our own, and adapters to those of others."""
