"""Datasets judged from outside: how far each is, and whether it holds what its plan promises."""
