"""Every method on the same splits, and the heads that each one selects."""
