"""Stored splats to pictures of any size, view and format, on Ray tasks that need no model."""
