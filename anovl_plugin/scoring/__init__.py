"""Comparison of tokens with the text bank: scores, adaptation and image scores."""
