"""Edits of what some tokens see of others."""
