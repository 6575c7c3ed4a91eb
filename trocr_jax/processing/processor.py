"""TrOCRProcessor: image processor and tokenizer in one, as in the reference."""

from __future__ import annotations

import contextlib
import inspect
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

from trocr_jax.checkpoints.folder import Saved
from trocr_jax.checkpoints.hub import local_folder
from trocr_jax.checkpoints.safetensors_writer import DEFAULT_MAX_SHARD_SIZE
from trocr_jax.processing.image import PREPROCESSOR_NAME, ImageProcessor, find_settings
from trocr_jax.processing.tokenizer import Encoding, TrOCRTokenizer, as_array

# What a call may say of text, and says in vain where there is none, as in the reference.
_OF_TEXT = inspect.signature(TrOCRTokenizer.__call__).parameters.keys()


class TrOCRProcessor(Saved):
    """Images to `pixel_values`, text to `labels`, ids to text."""

    def __init__(self, image_processor: ImageProcessor | None = None, tokenizer: TrOCRTokenizer | None = None) -> None:
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self._is_target = False
        # Why a part is missing, for the error when it is needed.
        self._missing: dict[str, str] = {}

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **hub_options: Any) -> TrOCRProcessor:
        """The processor of a hub id, a checkpoint folder, or a preprocessor_config.json (then its folder's tokenizer).

        A part whose files are missing is not an error until it is used. `hub_options` are those of
        `trocr_jax.TrOCR.from_pretrained`.
        """
        path = pathlib.Path(source)
        folder = path.parent if path.is_file() else local_folder(source, with_weights=False, **hub_options)
        processor = cls()
        settings = find_settings(path if path.is_file() else folder)
        if settings is not None:
            processor._image_processor = ImageProcessor.from_pretrained(settings)
        else:
            processor._missing["image_processor"] = f"{folder} holds no {PREPROCESSOR_NAME}"
        try:
            processor._tokenizer = TrOCRTokenizer.from_pretrained(folder)
        except FileNotFoundError as error:
            processor._missing["tokenizer"] = str(error)
        return processor

    def __repr__(self) -> str:
        return f"TrOCRProcessor({self._image_processor}, {self._tokenizer})"

    def write_files(self, folder: pathlib.Path, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE) -> None:
        """Writes the files of the parts that there are into a folder that exists; there is nothing to split."""
        if self._image_processor is not None:
            self._image_processor.save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)

    @property
    def image_processor(self) -> ImageProcessor:
        """The image part. Raises ValueError if the checkpoint has none."""
        return self._part("image_processor", self._image_processor)

    @property
    def tokenizer(self) -> TrOCRTokenizer:
        """The text part. Raises ValueError if the checkpoint has none."""
        return self._part("tokenizer", self._tokenizer)

    def with_tokenizer(self, tokenizer: TrOCRTokenizer) -> TrOCRProcessor:
        """A processor with another tokenizer and this one's image part, if it has one."""
        return self._with(self._image_processor, tokenizer)

    def with_image_processor(self, image_processor: ImageProcessor) -> TrOCRProcessor:
        """A processor with another image part and this one's tokenizer, if it has one."""
        return self._with(image_processor, self._tokenizer)

    def _with(self, image_processor: ImageProcessor | None, tokenizer: TrOCRTokenizer | None) -> TrOCRProcessor:
        processor = TrOCRProcessor(image_processor, tokenizer)
        processor._missing = self._missing
        return processor

    def _part(self, name: str, part: Any) -> Any:
        if part is None:
            raise ValueError(self._missing.get(name, f"this processor was made without {name}"))
        return part

    def __call__(self, images: Any = None, text: Any = None, *, return_tensors: str = "np", **options: Any) -> Encoding:
        """`pixel_values` float32 [B, 3, height, width] of images, `labels` of text, or both.

        Text alone gives `input_ids` and `attention_mask`. `options` go to the tokenizer (padding, truncation,
        max_length). Arrays are numpy's, or JAX's with return_tensors="jax". Raises ImageError for a broken image.
        """
        if self._is_target:
            images, text = None, images if text is None else text
        if images is None and text is None:
            raise ValueError("pass images=, text= or both")
        if text is None and (unknown := sorted(options.keys() - _OF_TEXT)):
            raise TypeError(f"{unknown} are no options of a call: make another image_processor, by dataclasses.replace")
        encoding = Encoding()
        if images is not None:
            encoding["pixel_values"] = as_array(self.image_processor(images), return_tensors)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if len(texts) > 1:
                options.setdefault("padding", True)
            tokens = self.tokenizer(texts, return_tensors=return_tensors, **options)
            if images is None:
                return tokens
            encoding["labels"] = tokens["input_ids"]
        return encoding

    @contextlib.contextmanager
    def as_target_processor(self) -> Iterator[None]:
        """Within it, a call takes text; the reference's old way, kept for old code. Prefer `text=`."""
        warnings.warn("as_target_processor is the old way; pass text= to the processor", FutureWarning, stacklevel=3)
        self._is_target = True
        try:
            yield
        finally:
            self._is_target = False

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of one row of ids; a list of texts for several rows."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of rows of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
