"""A vision-language model whose heads can be addressed, and how each family differs."""
