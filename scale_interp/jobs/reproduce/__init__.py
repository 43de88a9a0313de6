"""Published experiments, repeated by one command each."""
