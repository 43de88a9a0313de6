"""The falsification suite, its controls, its verdict, and how often it is wrong."""
