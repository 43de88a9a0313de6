"""Which of our splits an image is in, where a set's authors publish none."""

from __future__ import annotations

from .prompts import digest

SHARES = {"train": range(0, 5), "validation": range(5, 6), "test": range(6, 10)}
"""Tenths of the images."""


def split_of(group: str, seed: int) -> str:
    """ "train", "validation" or "test": depends on the image's key and the seed alone, so no image is in two splits.

    >>> [split_of(f"coco/{i:012d}", seed=0) for i in range(4)]
    ['train', 'train', 'train', 'test']
    """
    tenth = digest(f"split|{seed}|{group}") % 10
    return next(name for name, tenths in SHARES.items() if tenth in tenths)
