"""A run: its callbacks, its folder and record, and how it ends."""
