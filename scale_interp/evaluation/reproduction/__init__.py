"""Published experiments done again as their code does them, and what they leave out."""
