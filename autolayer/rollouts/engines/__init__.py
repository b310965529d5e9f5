"""The engines that generate completions."""
