"""Plain records and rules that need no torch."""
