"""Checkpoints and exports, and the settings in them."""
