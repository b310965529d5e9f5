"""One run in several processes: the process group, the sharded model and the shared run folder."""
