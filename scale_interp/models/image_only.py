"""Processors of images and text without their video part, so that torchvision is not needed."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import ProcessorMixin


@cache
def image_only(kind: type[ProcessorMixin]) -> Any:
    """The processor class without a video processor, under the same name."""

    whole = kind.get_attributes()

    class WithoutVideo(ProcessorMixin):
        """What a processor's own `__init__` calls: it leaves out the video processor, given by place or by name."""

        def __init__(self, *args: Any, **kwargs: Any):
            named = dict(zip(whole, args, strict=False)) | kwargs
            super().__init__(**{name: part for name, part in named.items() if name != "video_processor"})

    class ImageOnly(kind, WithoutVideo):  # type: ignore[misc, valid-type]
        video_processor = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            found = super()._get_arguments_from_pretrained(*args, **kwargs)
            found.insert(whole.index("video_processor"), None)
            return found

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            # SmolVLM's own asks the video processor for its frame rate first
            return ProcessorMixin.apply_chat_template(self, *args, **kwargs)

    ImageOnly.__name__ = ImageOnly.__qualname__ = kind.__name__
    return ImageOnly
