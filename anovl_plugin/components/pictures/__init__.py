"""The pictures of results, and how they are drawn."""
