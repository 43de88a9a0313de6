"""A vision-language model whose heads can be addressed, and what each family does otherwise."""
