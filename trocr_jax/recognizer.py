"""TrOCR: the one door. Images in, text out."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, overload

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from trocr_jax.calibration import Calibration
from trocr_jax.checkpoints.folder import Saved, Source
from trocr_jax.checkpoints.hub import local_folder
from trocr_jax.checkpoints.safetensors_writer import DEFAULT_MAX_SHARD_SIZE
from trocr_jax.config import VisionEncoderDecoderConfig
from trocr_jax.constraints.for_images import (
    Automata,
    Constraints,
    check_constraints,
    compile_constraints,
    with_automata,
)
from trocr_jax.decoding.generate import GenerationOutput, bucket, check_ids, check_images, checked_key
from trocr_jax.decoding.token_automaton import TokenAutomaton
from trocr_jax.engine import Engine
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.generation_config.presets import RESAMPLE
from trocr_jax.memory import default_batch_size
from trocr_jax.modeling.model import VisionEncoderDecoder, apply
from trocr_jax.models import VisionEncoderDecoderModel
from trocr_jax.opening import OpenedImage, take_image
from trocr_jax.processing.image import ImageProcessor, as_list, is_single
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.reading import Boxes, OnError, Reading, check_choices
from trocr_jax.results import Recognition, judge
from trocr_jax.sharding import shard_batch

EMBEDDED = pathlib.Path(__file__).parent / "assets" / "trocr-nano-printed"

# An image whatever its content; an array is one or several by its axes.
OneImage = str | os.PathLike[str] | Image.Image | bytes | IO[bytes]

_NOT_READ = ("output_scores", "output_logits")


class TrOCR(Saved):
    """A text-line recogniser: a checkpoint's network, processor, generation settings and, if it has one, calibration.

    >>> ocr = TrOCR.from_pretrained()                       # the small embedded model
    >>> ocr(["a.png", "b.png"], num_beams=4)                # a Recognition each, in order
    """

    def __init__(
        self, network: VisionEncoderDecoderModel, processor: TrOCRProcessor, calibration: Calibration | None = None
    ) -> None:
        self._network = network
        self.processor = processor
        self.calibration = calibration  # what maps confidences; None leaves them the model's own

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "auto",
        mesh: Mesh | None = None,
        **hub_options: Any,
    ) -> TrOCR:
        """The recogniser of a folder or hub id ("org/name"); without one, of the small model inside this package.

        `dtype` is "float32" (strict), "bfloat16", "int8" (float32, but for the decoder's kernels), "float64" (where x64
        is on) or "auto": float32 on CPU, bfloat16 elsewhere. Batches are divided over all local devices, or over a
        `mesh` (see `trocr_jax.make_mesh`), which may divide the weights as well. `hub_options` are revision, token,
        cache_dir, local_files_only and force_download.
        Raises ValueError for a model that is not supported or does not fit its configuration, FileNotFoundError or
        OSError where there is nothing to load. A folder without tokenizer files loads; only text then fails.
        """
        folder = local_folder(EMBEDDED if source is None else source, **hub_options)
        network = VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype, mesh=mesh)
        network.source = Source.of(EMBEDDED if source is None else source, folder)
        return cls(network, TrOCRProcessor.from_pretrained(folder), Calibration.from_pretrained(folder))

    def write_files(self, folder: pathlib.Path, *, max_shard_size: int | str = DEFAULT_MAX_SHARD_SIZE) -> None:
        """Writes what the model, the processor and a calibration write into a folder that exists."""
        self._network.write_files(folder, max_shard_size=max_shard_size)
        self.processor.write_files(folder)
        if self.calibration is not None:
            self.calibration.write_files(folder)

    def with_params(
        self,
        params: Mapping[str, Any],
        *,
        config: VisionEncoderDecoderConfig | None = None,
        tokenizer: TrOCRTokenizer | None = None,
        image_processor: ImageProcessor | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> TrOCR:
        """A recogniser with other weights, uncalibrated; it shares what else this one has and is not given.

        Weights of another architecture go with its `config`, those of another vocabulary with its `tokenizer` as well,
        those for other images with its `image_processor`.
        """
        old = self._network
        network = VisionEncoderDecoderModel(
            config or old.config,
            params=params,
            generation_config=generation_config or old.generation_config,
            dtype=old.policy.name,
            mesh=old.mesh,
        )
        network.source = old.source
        processor = self.processor
        if tokenizer is not None:
            processor = processor.with_tokenizer(tokenizer)
        if image_processor is not None:
            processor = processor.with_image_processor(image_processor)
        return TrOCR(network, processor)

    def __repr__(self) -> str:
        return f"TrOCR({self.source or 'weights in memory'}, {self._network!r})"

    def on(self, mesh: Mesh | None) -> TrOCR:
        """A recogniser with the same weights on other devices; None for this process's own."""
        old = self._network
        network = VisionEncoderDecoderModel(
            old.config,
            params=old.params,
            generation_config=old.generation_config,
            dtype=old.policy.name,
            mesh=mesh,
        )
        network.source = old.source
        return TrOCR(network, self.processor, self.calibration)

    @property
    def mesh(self) -> Mesh | None:
        """The devices that batches are divided over; None for one device."""
        return self._network.mesh

    @property
    def config(self) -> VisionEncoderDecoderConfig:
        """The architecture."""
        return self._network.config

    @property
    def source(self) -> str | None:
        """What the weights were read from: a hub id and its revision, or a folder's name."""
        return None if self._network.source is None else str(self._network.source)

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's generation settings, which a call's options go on top of."""
        return self._network.generation_config

    @generation_config.setter
    def generation_config(self, settings: GenerationConfig) -> None:
        self._network.generation_config = settings

    @property
    def params(self) -> Mapping[str, Any]:
        """The canonical parameter tree, in the dtype of the file."""
        return self._network.params

    @property
    def model(self) -> VisionEncoderDecoder:
        """The linen module that goes with `params`: `ocr.model.apply({"params": ocr.params}, pixel_values, ids)`."""
        return self._network.module

    @overload
    def __call__(
        self,
        images: OneImage,
        *,
        batch_size: int | None = None,
        on_error: OnError = "return",
        reject_below: float | None = None,
        skip_blank: bool = False,
        boxes: Boxes = False,
        constraint: Constraints = None,
        **options: Any,
    ) -> Recognition: ...
    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...] | Iterator[Any],
        *,
        batch_size: int | None = None,
        on_error: OnError = "return",
        reject_below: float | None = None,
        skip_blank: bool = False,
        boxes: Boxes = False,
        constraint: Constraints = None,
        **options: Any,
    ) -> list[Recognition]: ...
    @overload
    def __call__(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        on_error: OnError = "return",
        reject_below: float | None = None,
        skip_blank: bool = False,
        boxes: Boxes = False,
        constraint: Constraints = None,
        **options: Any,
    ) -> Any: ...
    def __call__(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        on_error: OnError = "return",
        reject_below: float | None = None,
        skip_blank: bool = False,
        boxes: Boxes = False,
        constraint: Constraints = None,
        **options: Any,
    ) -> Any:
        """What is written in the images: a list of Recognition in order, or one for a single image.

        An image is a path, an open file or its bytes, a PIL image or an array ([h, w], [h, w, C] or [C, h, w]; uint8,
        16-bit, bool, or floats in [0, 1]). `options` are fields of GenerationConfig, such as num_beams=4 or
        max_new_tokens=64, preset="fairseq" (which resizes images as the original did, too), a whole `generation_config`
        in the checkpoint's place, and, with do_sample=True, a `key`: an int or a jax.random.key, which with the image's
        place among the images decides what is drawn (without one, the same each time).

        An image that cannot be read gives a Recognition with `error`, or raises ImageError with on_error="raise". A
        text whose confidence is below `reject_below` comes back empty, as "rejected". With `skip_blank` an image
        without ink comes back empty, as "blank", and the model never sees it; that is off unless it is asked for, since
        only a person can say how faint a text may be.

        `boxes` is True (or "word") for a box around each word, "char" for one around each character as well: a second
        look at the text that was found, one pass of the decoder and some 5 ms a line on the host.

        `constraint` is what the texts may be: AllowedCharacters, a Lexicon, a Pattern, or several joined by &, from
        `trocr_jax.constraints`; or a list with one, or None, for each image.
        """
        found = self.stream(
            as_list(images),
            batch_size=batch_size,
            on_error=on_error,
            reject_below=reject_below,
            skip_blank=skip_blank,
            boxes=boxes,
            constraint=constraint,
            **options,
        )
        return next(iter(found)) if is_single(images) else list(found)

    def stream(
        self,
        images: Iterable[Any],
        *,
        batch_size: int | None = None,
        on_error: OnError = "return",
        reject_below: float | None = None,
        skip_blank: bool = False,
        boxes: Boxes = False,
        constraint: Constraints = None,
        key: Any = None,
        image_numbers: Iterable[int] | None = None,
        read_ahead: int | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Iterator[Recognition]:
        """Recognitions in the images' order, each batch as soon as it is read; arguments as in a call.

        `image_numbers`, one an image, are their places among all images where these are a part of them. `read_ahead` is
        how many batches are taken and opened beyond the one being waited for, so that the device never waits and images
        of like width can share a batch (4 batches at a time are sorted; a batch goes on until its longest text ends):
        7 for a list; 0 for an iterator, whose next image may be long in coming, unless it is asked for.
        """
        check_choices(on_error, batch_size, read_ahead, boxes, reject_below)
        # A missing tokenizer and wrong options are known before the first image is opened.
        _ = self.processor.tokenizer
        if useless := [name for name in _NOT_READ if options.get(name)]:
            raise TypeError(f"{useless} are in no Recognition; call generate for them")
        positions = self.config.decoder.max_position_embeddings
        # Every step's whole vocabulary is in no Recognition, whatever a checkpoint's settings ask for.
        defaults = self._network.settings_with(generation_config).replace(**dict.fromkeys(_NOT_READ, False))
        settings = defaults.resolve(options, prompt_length=1, max_positions=positions)
        checked_key(key, settings)
        images = [images] if is_single(images) else images
        automata = self._compiled(constraint, settings)
        check_constraints(automata, images, settings.max_length or 0)
        if read_ahead is None:
            read_ahead = 7 if isinstance(images, Sequence | np.ndarray) else 0
        numbered = enumerate(images) if image_numbers is None else zip(image_numbers, images, strict=True)
        image_processor = self._image_processor(options.get("preset"))
        reading = Reading(
            self._network,
            self.processor,
            image_processor,
            self.calibration,
            on_error,
            boxes,
            key,
            defaults,
            options,
        )

        def take(item: tuple[tuple[int, Any], TokenAutomaton | None]) -> Callable[[], OpenedImage]:
            (number, image), automaton = item
            open_image = take_image(number, image, image_processor, skip_blank=skip_blank, with_ink=bool(boxes))
            return lambda: dataclasses.replace(open_image(), automaton=automaton)

        engine = Engine(
            take,
            reading.launch,
            batch_size=batch_size or self._batch_size(settings),
            read_ahead=read_ahead,
            likeness=lambda image: image.aspect,
        )
        found = engine.run(with_automata(numbered, automata))
        return found if reject_below is None else (line.rejected_below(reject_below) for line in found)

    def _batch_size(self, settings: GenerationConfig) -> int:
        """Images a batch where none is asked for."""
        _ = self._network.runtime  # on the device, before what is left of its memory is asked for
        rows = max(settings.num_beams, settings.num_return_sequences)
        length = settings.max_length or self.config.decoder.max_position_embeddings
        return self._network.num_parts * default_batch_size(self.config, self.model.policy, rows, length, self.mesh)

    def _image_processor(self, preset: str | None) -> ImageProcessor:
        """The checkpoint's image processor, with a preset's filter if there is one."""
        image_processor = self.processor.image_processor
        return image_processor if preset is None else dataclasses.replace(image_processor, resample=RESAMPLE[preset])

    def calibrate(
        self, images: Iterable[Any], texts: Iterable[str], *, batch_size: int | None = None, **options: Any
    ) -> Calibration:
        """Fits what maps confidences on images whose texts are known, and sets `calibration` to it.

        Some hundred lines are needed, of the kind that will be read and none of them trained on, read with the options
        (those of a call that bear on the search) that will be used. An iterator's images are taken as they are read,
        `read_ahead` as in `stream`. See `trocr_jax.calibration`. Raises ImageError for
        an image that cannot be read and ValueError where texts and images do not pair up.
        """
        images, texts = images if isinstance(images, Iterator) else as_list(images), list(texts)
        if isinstance(images, list):
            _check_paired(len(images), len(texts))
        if others := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"{others[0]!r} is no text; pass what is written in each image as a str")
        if useless := sorted(options.keys() & {"reject_below", "skip_blank", "boxes", "on_error"}):
            raise TypeError(f"{useless} bear on no confidence; pass options of the search alone")
        plain = TrOCR(self._network, self.processor)
        lines = list(plain.stream(images, batch_size=batch_size, on_error="raise", **options))
        _check_paired(len(lines), len(texts))
        if broken := [line.error for line in lines if line.error is not None]:
            raise ValueError(f"nothing to calibrate: {broken[0]}")
        self.calibration = Calibration.fit(*judge(lines, texts))
        return self.calibration

    def generate(
        self,
        pixel_values: Any = None,
        *,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        decoder_input_ids: Any = None,
        constraint: Constraints = None,
        **options: Any,
    ) -> GenerationOutput:
        """Token ids and scores for a batch: `sequences` [B*R, length] int32, start token and padding as transformers'.

        pixel_values [B, 3, height, width], or encoder_hidden_states [B, S, E] from `encode` with an optional
        encoder_attention_mask [B, S]; decoder_input_ids [B, P] are a prompt to continue; `constraint` is one for all
        images or a list with one, or None, for each. `options` are a preset, fields of GenerationConfig and, for
        sampling, a key and image_numbers (see `trocr_jax.decoding.generate`); R is num_return_sequences. Raises
        ValueError before anything is compiled.
        """
        options.pop("return_dict_in_generate", None)  # it always is one
        settings = self._network.settings_with(options.get("generation_config"))
        tokens = {name: options[name] for name in ("eos_token_id", "decoder_start_token_id") if name in options}
        output = self._network.generate(
            pixel_values,
            return_dict_in_generate=True,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            decoder_input_ids=decoder_input_ids,
            constraints=self._compiled(constraint, settings.replace(**tokens)),
            **options,
        )
        assert isinstance(output, GenerationOutput)
        return output

    def _compiled(self, constraint: Constraints, settings: GenerationConfig) -> Automata:
        """A constraint, or each of a list, as an automaton over this model's tokens."""
        if constraint is None:
            return None
        tokenizer, vocab_size = self.processor.tokenizer, self.config.decoder.vocab_size
        return compile_constraints(constraint, tokenizer, vocab_size, settings.eos_token_ids, settings.start_token_id)

    def encode(self, pixel_values: Any) -> jax.Array:
        """Encoder states [B, S, E] of pixel_values [B, 3, height, width], before any bridge projection."""
        return self._network.encode(pixel_values)

    def logits(self, pixel_values: Any, decoder_input_ids: Any) -> jax.Array:
        """Logits [B, T, V] of the token behind each of decoder_input_ids [B, T]; pads are tokens like any other."""
        model, params = self._network.runtime
        images, ids = check_images(model, pixel_values), np.asarray(decoder_input_ids)
        positions = self.config.decoder.max_position_embeddings
        if ids.ndim != 2 or len(ids) != len(images) or not 0 < ids.shape[1] <= positions:
            raise ValueError(
                f"decoder_input_ids have shape {list(ids.shape)}; [{len(images)}, T] was expected, "
                f"T from 1 to {positions}"
            )
        check_ids("decoder_input_ids", ids, self.config.decoder.vocab_size)
        return _logits(params, *shard_batch((images, ids), self._network.mesh), model=model)

    def warmup(self, *, batch_sizes: int | Iterable[int] = 1, **options: Any) -> None:
        """Compiles (or loads from the compilation cache) what calls with these batch sizes and options will run."""
        sizes = [batch_sizes] if isinstance(batch_sizes, int) else list(batch_sizes)
        if not all(size > 0 for size in sizes):
            raise ValueError(f"batch_sizes is {batch_sizes!r}; a batch has at least one image")
        blank = np.zeros((*self.config.encoder.image_shape, 3), np.uint8)
        for size in sorted({bucket(size, self._network.num_parts) for size in sizes}):
            list(self.stream([blank] * size, batch_size=size, **{**options, "skip_blank": False}))


def _check_paired(num_images: int, num_texts: int) -> None:
    if num_images != num_texts:
        raise ValueError(f"{num_images} images have {num_texts} texts; every image needs the text in it")


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(
    params: Mapping[str, Any], pixel_values: jax.Array, ids: jax.Array, *, model: VisionEncoderDecoder
) -> jax.Array:
    return apply(model, params, pixel_values, ids)
