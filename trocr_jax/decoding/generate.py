"""The jit edge of inference: pixels to ids in one compiled program.

Only shapes are static: the bucketed batch, the number of beams, the bucketed cache length, which processors are
present. Everything else, lengths and penalties included, is traced, so that changing it does not recompile.

B images, R sequences returned for each, P prompt tokens, L cache length, S encoder tokens, E encoder width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trocr_jax.decoding import beam, greedy
from trocr_jax.decoding.constrained import make_constrain
from trocr_jax.decoding.logits_processors import LogitsProcessor
from trocr_jax.decoding.parallel import over_data, place_batch
from trocr_jax.decoding.processor_list import make_processors
from trocr_jax.decoding.sampling import Randomness
from trocr_jax.decoding.search import EARLY_STOPPING, Cache, Hypotheses, SearchOptions
from trocr_jax.decoding.shapes import bucket, length_bucket
from trocr_jax.decoding.token_automaton import TokenAutomaton
from trocr_jax.generation_config import GenerationConfig
from trocr_jax.modeling.model import VisionEncoderDecoder, apply, encode_images, for_rows
from trocr_jax.modeling.output import Output
from trocr_jax.sharding import DATA, axis_size, fetch, mesh_of

Array = jax.Array
Params = Mapping[str, Any]


@flax.struct.dataclass
class GenerationOutput(Output):
    """What `generate` found, as host arrays; hypotheses of one image lie side by side, best first (samples as drawn).

    Names are transformers'. `sequences` have the start token first and are cut behind the longest row; `scores` and
    `logits` are one array instead of a tuple of steps, under beam search the steps of all running beams, some perhaps
    behind the longest row: row n's token t comes from `scores[beam_indices[n, t], t]`. The number of new tokens is 0 in
    a row that no hypothesis filled, since the options and constraints leave fewer texts than were asked for. On several
    devices `scores` and `logits` are 0 in steps that an image's own device did not take.
    """

    sequences: np.ndarray  # [B*R, P + T] int32
    sequences_scores: np.ndarray | None  # [B*R]; None without beams
    token_log_probs: np.ndarray  # [B*R, T], the model's own log-probability of each new token, 0 behind the end
    num_tokens: np.ndarray  # [B*R] new tokens, the end token included
    is_truncated: np.ndarray  # [B*R] whether the length limit came before an end token
    scores: np.ndarray | None = None  # [B*K, steps, V] with output_scores: logits, with beams log-probs, as processed
    logits: np.ndarray | None = None  # [B*K, steps, V] with output_logits: the model's own
    beam_indices: np.ndarray | None = None  # [B*R, T] of either's rows, -1 behind the end; None without beams


@flax.struct.dataclass
class Inputs:
    """One bucketed batch on its way to the device: images, or what the encoder made of them, and the prompt."""

    pixel_values: Array | None  # [B, 3, height, width]
    encoder_hidden_states: Array | None  # [B, S, E], before any bridge projection
    encoder_attention_mask: Array | None  # [B, S]
    prompt: Array  # [B, P] int32


def generate(
    model: VisionEncoderDecoder, params: Params, settings: GenerationConfig, **inputs: Any
) -> GenerationOutput:
    """What `launch` finds, waited for; arguments and errors are the same."""
    return launch(model, params, settings, **inputs)()


def launch(
    model: VisionEncoderDecoder,
    params: Params,
    settings: GenerationConfig,
    *,
    pixel_values: Any = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
    decoder_input_ids: Any = None,
    key: Any = None,
    image_numbers: Any = None,
    constraints: TokenAutomaton | Sequence[TokenAutomaton | None] | None = None,
    num_images: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[], GenerationOutput]:
    """Starts the device on a batch -> a function that waits for its texts, which the model finds with these parameters.

    Parameters are prepared or canonical.

    pixel_values [B, 3, height, width], or encoder_hidden_states [B, S, E] as `encode` gives them with an optional
    encoder_attention_mask [B, S]; decoder_input_ids [B, P] are a prompt to continue, which the start token is put in
    front of if it is not there. `options` go on top of `settings`.

    Sampling draws from `key`, a jax.random key or an int, 0 if it is left out. An image's texts depend on the key and
    on its number, 0, 1, ... unless image_numbers [B] are given, and on no other image of the batch.

    `constraints` are an automaton that every text has to follow, or one, or None, for each image. The first num_images
    of the batch count, the rest only fill it up; all of them if it is left out.

    Raises ValueError, before anything is compiled, for inputs or options that do not fit.
    """
    if (pixel_values is None) == (encoder_hidden_states is None):
        raise ValueError("pass either pixel_values or encoder_hidden_states")
    images = check_images(model, pixel_values, encoder_hidden_states)
    batch, vocab_size = num_images or images.shape[0], model.config.decoder.vocab_size
    settings = settings.replace(**{k: v for k, v in (options or {}).items() if k == "decoder_start_token_id"})
    prompt = _checked_prompt(decoder_input_ids, batch, vocab_size, settings)
    settings = settings.resolve(
        options or {}, prompt_length=prompt.shape[1], max_positions=model.config.decoder.max_position_embeddings
    )
    mesh = mesh_of(params)
    rows = bucket(images.shape[0], axis_size(mesh, DATA))
    is_pixels = pixel_values is not None
    inputs = Inputs(
        pixel_values=_pad_rows(images, rows) if is_pixels else None,
        encoder_hidden_states=None if is_pixels else _pad_rows(images, rows),
        encoder_attention_mask=_pad_rows(_checked_mask(encoder_attention_mask, images), rows),
        prompt=_pad_rows(prompt, rows),
    )
    key, numbers = checked_key(key, settings), _pad_rows(_checked_numbers(image_numbers, batch), rows)
    randomness = None if key is None else Randomness(key, numbers)
    constrain = make_constrain(constraints, _pad_rows(prompt, rows), batch, vocab_size, settings)
    processors = make_processors(settings, vocab_size, prompt.shape[1], constrain)
    search_options = make_search_options(settings, processors, randomness, is_image=np.arange(rows) < batch)
    found = run(
        params,
        *place_batch(inputs, search_options, mesh),
        model=model,
        num_beams=int(settings.num_beams),
        num_samples=int(settings.num_return_sequences) if settings.num_beams == 1 else 1,
        length=min(length_bucket(settings.max_length or 0), model.config.decoder.max_position_embeddings + 1),
        mesh=mesh,
    )
    return functools.partial(_output, found, batch, prompt.shape[1], settings)


@functools.partial(jax.jit, static_argnames=("model", "num_beams", "num_samples", "length", "mesh"))
@over_data
def run(
    params: Params,
    inputs: Inputs,
    options: SearchOptions,
    *,
    model: VisionEncoderDecoder,
    num_beams: int,
    num_samples: int,
    length: int,
) -> Hypotheses:
    """The whole of inference as one program: encode, project the cross keys and values once, search."""
    states = inputs.encoder_hidden_states
    if states is None:
        assert inputs.pixel_values is not None
        states = encode_images(model, params, inputs.pixel_values, method="encode").last_hidden_state
    width = num_beams * num_samples  # one of the two is 1
    cache = apply(model, params, states, inputs.encoder_attention_mask, width, length, method="start")
    stepper, step_params = for_rows(model, params, states.shape[0] * width)

    def step(tokens: Array, position: Array, ancestors: Array, cache: Cache) -> tuple[Array, Cache]:
        return apply(stepper, step_params, tokens, position, ancestors, cache, method="step")

    vocab_size, dtype = model.config.decoder.vocab_size, model.policy.result
    prompt_length = inputs.prompt.shape[1]
    if num_beams == 1:
        end = lax.while_loop(
            lambda state: greedy.is_unfinished(state, options),
            lambda state: greedy.advance(step, state, options),
            greedy.start(step, inputs.prompt, cache, options, num_samples, length, vocab_size, dtype),
        )
        return greedy.finish(end, num_samples, prompt_length, options)
    return beam.finish(
        lax.while_loop(
            lambda state: beam.is_unfinished(state, options),
            lambda state: beam.advance(step, state, options, prompt_length),
            beam.start(step, inputs.prompt, cache, options, num_beams, length, vocab_size, dtype),
        )
    )


def make_search_options(
    settings: GenerationConfig,
    processors: tuple[LogitsProcessor, ...],
    randomness: Randomness | None,
    is_image: np.ndarray,
) -> SearchOptions:
    """Resolved settings as the search takes them."""
    fill = settings.fill_token_id
    if settings.num_beams > 1:
        # The reference's beam search fills up with `pad or eos[0]`, so that a pad of 0 becomes the end token, and
        # with -1 where no token ends a sequence.
        fill = (fill or settings.eos_token_ids[0]) if settings.eos_token_ids else -1
    return SearchOptions(
        max_length=np.int32(settings.max_length or 0),
        end_tokens=np.asarray(settings.eos_token_ids, np.int32),
        fill_token=np.int32(fill),
        length_penalty=np.float32(settings.length_penalty),
        early_stopping=np.int32(EARLY_STOPPING[settings.early_stopping]),
        is_image=is_image,
        processors=processors,
        randomness=randomness,
        output_scores=bool(settings.output_scores),
        output_logits=bool(settings.output_logits),
    )


def _output(found: Hypotheses, batch: int, prompt_length: int, settings: GenerationConfig) -> GenerationOutput:
    returned, beams = settings.num_return_sequences, settings.num_beams
    width = found.scores.shape[1]
    length = int(np.max(fetch(found.length)))
    # Cut on the device: these are the whole vocabulary of every step.
    record = fetch(jax.tree.map(lambda leaf: leaf[: batch * width, prompt_length:length], found.record))
    found = fetch(found.replace(record=None))  # type: ignore[attr-defined]

    def rows(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)[:batch, :returned]
        return leaf.reshape(batch * returned, *leaf.shape[2:])  # [B, K, ...] -> [B*R, ...]

    num_tokens, sequences = rows(found.num_tokens), rows(found.sequences)
    length = prompt_length + int(num_tokens.max())
    last = sequences[np.arange(len(sequences)), prompt_length + num_tokens - 1]
    beam_indices = None
    if found.beam_indices is not None:
        own = found.beam_indices + beams * np.arange(len(found.beam_indices))[:, None, None]  # of all images' beams
        is_token = np.arange(length - prompt_length) < num_tokens[:, None]
        beam_indices = np.where(is_token, rows(own)[:, prompt_length:length], -1)
    return GenerationOutput(
        sequences=sequences[:, :length],
        sequences_scores=rows(found.scores) if beams > 1 else None,
        token_log_probs=rows(found.token_log_probs)[:, prompt_length:length],
        num_tokens=num_tokens,
        # A slot that no hypothesis filled has not ended either, whatever its prompt ends with.
        is_truncated=(num_tokens == 0) | ~np.isin(last, settings.eos_token_ids),
        scores=record.scores,
        logits=record.logits,
        beam_indices=beam_indices,
    )


def check_images(model: VisionEncoderDecoder, pixel_values: Any, encoder_hidden_states: Any = None) -> Any:
    """pixel_values [B, 3, height, width], or encoder_hidden_states [B, S, E], as an array; ValueError if misshapen."""
    encoder = model.config.encoder
    if pixel_values is not None:
        name, given = "pixel_values", _array(pixel_values)
        expected = (encoder.num_channels, *encoder.image_shape)
        fits = given.ndim == 4 and given.shape[1:] == expected
        wanted = f"[B, {', '.join(map(str, expected))}]"
    else:
        name, given = "encoder_hidden_states", _array(encoder_hidden_states)
        fits = given.ndim == 3 and given.shape[2] == encoder.hidden_size
        wanted = f"[B, S, {encoder.hidden_size}]"
    if not fits or given.shape[0] == 0:
        raise ValueError(f"{name} have shape {list(given.shape)}; this model takes {wanted}, B at least 1")
    return given


def _checked_mask(mask: Any, images: Any) -> Any:
    if mask is None:
        return None
    mask = _array(mask)
    if images.ndim != 3 or mask.shape != images.shape[:2]:
        raise ValueError("encoder_attention_mask goes with encoder_hidden_states [B, S, E] and has shape [B, S]")
    return mask


def _checked_prompt(ids: Any, batch: int, vocab_size: int, settings: GenerationConfig) -> np.ndarray:
    start = np.full((batch, 1), settings.start_token_id, np.int32)
    prompt = start if ids is None else np.asarray(ids)
    if prompt.ndim != 2 or prompt.shape[0] != batch or prompt.shape[1] == 0:
        raise ValueError(f"decoder_input_ids have shape {list(prompt.shape)}; [{batch}, P] was expected, P at least 1")
    check_ids("decoder_input_ids", prompt, vocab_size)
    # As in the reference, a prompt none of whose rows begins with the start token gets it in front.
    needs_start = bool(np.all(prompt[:, 0] != settings.start_token_id))
    return (np.concatenate([start, prompt], axis=1) if needs_start else prompt).astype(np.int32)


def checked_key(key: Any, settings: GenerationConfig) -> Any:
    """What resolved settings draw from, a jax.random key, or None where nothing is drawn; ValueError if misshapen."""
    if not settings.do_sample:
        if key is not None:
            raise ValueError("key is given, but nothing is drawn: pass do_sample=True as well, or no key")
        return None
    if key is None or (isinstance(key, int | np.integer) and not isinstance(key, bool)):
        key = jax.random.key(int(key or 0))
    elif isinstance(key, jax.Array) and key.shape == (2,) and key.dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)  # of the old style
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise ValueError(f"key is {key!r}; it must be an int or one jax.random.key")
    return key


def _checked_numbers(image_numbers: Any, batch: int) -> np.ndarray:
    numbers = np.arange(batch) if image_numbers is None else np.asarray(image_numbers)
    if numbers.shape != (batch,) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"image_numbers are {numbers.dtype} of shape {list(numbers.shape)}; [{batch}] ints are needed")
    return numbers.astype(np.int32)


def check_ids(name: str, ids: Any, vocab_size: int, *, also: int | None = None) -> None:
    """Raises ValueError unless all ids are tokens (or `also`): JAX would clamp others silently. Tracers pass."""
    if isinstance(ids, jax.core.Tracer):
        return
    ids = np.asarray(ids)
    is_token = (ids >= 0) & (ids < vocab_size)
    if not np.issubdtype(ids.dtype, np.integer) or not np.all(is_token | (ids == also)):
        raise ValueError(
            f"{name} are {ids.dtype} from {ids.min()} to {ids.max()}; this model's tokens are 0 to {vocab_size - 1}"
        )


def _array(values: Any) -> Any:
    if isinstance(values, jax.Array | np.ndarray):
        return values
    if hasattr(values, "detach"):  # a torch tensor: numpy cannot take one of bfloat16 or with gradients
        values = values.detach().cpu().float()
    return np.asarray(values)


def _pad_rows(values: Any, rows: int) -> Any:
    """Repeats the first row up to `rows`: a real image costs nothing that zeros would not, and is never non-finite."""
    if values is None or values.shape[0] == rows:
        return values
    concatenate = jnp.concatenate if isinstance(values, jax.Array) else np.concatenate
    return concatenate([values, *[values[:1]] * (rows - values.shape[0])])
