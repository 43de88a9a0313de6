"""The falsification suite, its controls, its verdict, and its error rates."""
