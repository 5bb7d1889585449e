"""How work runs: shards through one scheduler on Ray's tasks and actors, its progress; threads within a process."""
