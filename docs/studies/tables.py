"""Tables and intervals in Markdown, for the scripts that write these pages."""

import pandas as pd


def table(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|---" * len(frame.columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False))])


def span(value: float, low: float, high: float, sign: str = "") -> str:
    """A number and its interval; sign="+" for differences."""
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
