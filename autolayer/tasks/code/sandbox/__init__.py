"""The sandbox that runs programs written by a model. Other modules need `open_sandbox` and the records in `jobs`."""
