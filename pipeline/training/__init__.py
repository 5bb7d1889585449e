"""The prepared set to weights: the loop of one rank, and its shell under Ray Train."""
