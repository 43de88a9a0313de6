"""How mkdocstrings reads our docstrings: plain sentences, then an example in doctest's form."""

import griffe


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
    """
    blocks = []
    for block in text.split("\n\n"):
        if block.lstrip().startswith(">>>"):
            if blocks and blocks[-1].startswith("```pycon"):
                blocks[-1] = blocks[-1].removesuffix("\n```") + "\n\n" + block + "\n```"
            else:
                blocks.append(f"```pycon\n{block}\n```")
        else:
            blocks.append(_plain(block))
    return "\n\n".join(blocks)


def _plain(sentences: str) -> str:
    """Sentences in which only code spans are markup."""
    parts = sentences.split("`")
    for i in range(0, len(parts), 2):
        for mark in "\\*_[]<>#":
            parts[i] = parts[i].replace(mark, "\\" + mark)
    return "`".join(parts)
