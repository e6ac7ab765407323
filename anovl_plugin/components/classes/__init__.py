"""The classes that images show: which class each has, and what is kept for each."""
