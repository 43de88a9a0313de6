"""How mkdocstrings reads our docstrings: plain sentences, Args and the like by name, then an example in doctest's form."""

import re

import griffe

NAMED = re.compile(r"( +)(\*{0,2}\w+): (.*)")
"""A line of Args, Raises, Warns or Attributes that begins an entry: its name is not text."""


class Examples(griffe.Extension):
    """Put every doctest into a fence, and keep markup out of the sentences before it."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring as Markdown.

    >>> to_markdown("Weights |s - 1| of [L, H].")
    'Weights |s - 1| of \\\\[L, H\\\\].'
    >>> to_markdown("Adds.\\n\\n" + ">>" + "> 1 + 1\\n2").splitlines()
    ['Adds.', '', '```pycon', '>>> 1 + 1', '2', '```']
    >>> to_markdown("Args:\\n    batch_size: Of one_thing.")
    'Args:\\n    batch_size: Of one\\\\_thing.'
    """
    blocks = []
    for block in text.split("\n\n"):
        if block.lstrip().startswith(">>>"):
            if blocks and blocks[-1].startswith("```pycon"):
                blocks[-1] = blocks[-1].removesuffix("\n```") + "\n\n" + block + "\n```"
            else:
                blocks.append(f"```pycon\n{block}\n```")
        else:
            blocks.append("\n".join(map(_line, block.split("\n"))))
    return "\n\n".join(blocks)


def _line(line: str) -> str:
    entry = NAMED.fullmatch(line)
    return f"{entry[1]}{entry[2]}: {_plain(entry[3])}" if entry else _plain(line)


def _plain(sentences: str) -> str:
    """Sentences in which only code spans are markup."""
    parts = sentences.split("`")
    for i in range(0, len(parts), 2):
        for mark in "\\*_[]<>#":
            parts[i] = parts[i].replace(mark, "\\" + mark)
    return "`".join(parts)
