"""Measured contribution: every layer and full-parameter RL trained, on several seeds (`measure.measure`)."""
