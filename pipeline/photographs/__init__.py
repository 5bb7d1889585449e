"""Photographs wherever they lie, made the prepared set that training and evaluation read."""
