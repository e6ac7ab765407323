"""How the small CLIP of the package was trained, and what was measured on it."""
