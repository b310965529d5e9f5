"""Programming: problems with tests, the sandbox that runs them, and the smallest form, `code:expr`."""
