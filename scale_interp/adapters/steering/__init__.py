"""Heads pushed along a direction: ITI, answer directions and emphasis."""
