"""Models, layers and patches."""
