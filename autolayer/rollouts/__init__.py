"""Sampling, rewarding and evaluating completions."""
