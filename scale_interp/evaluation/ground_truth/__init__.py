"""How well methods find heads that are known to matter."""
