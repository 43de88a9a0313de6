"""Answers under scaled attention, and accuracy against its weight."""
