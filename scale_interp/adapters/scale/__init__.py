"""ScAle: learned scalars on the last token's heads and MLPs."""
