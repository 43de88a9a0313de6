"""The name of the keys and values in a forward pass: `cache` since transformers 5.24, `past_key_values` before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

OLD = "past_key_values"
CACHE = "cache" if any(field.name == "cache" for field in fields(BaseModelOutputWithPast)) else OLD


def cache_of(given: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a forward pass, under either name; None without one."""
    found = given.get(CACHE)
    found = given.get(OLD) if found is None else found
    return found if hasattr(found, "get_seq_length") else None


def with_cache(given: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The arguments of a forward pass with another cache, or with None."""
    return {name: value for name, value in given.items() if name not in (CACHE, OLD)} | {CACHE: cache}
