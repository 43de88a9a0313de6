"""Rendered scenes with every box known, and the questions about them."""
