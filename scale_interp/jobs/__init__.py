"""What each command does: its settings, its steps in a folder, and its page."""
