"""Batches on their way: in order, bounded, overlapping, without threads left behind; smaller where memory ends."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import types
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

import trocr_jax.decoding.generate
import trocr_jax.recognizer
from tests.conftest import SAMPLES
from tests.processing.test_image import DIALECTS
from trocr_jax import TrOCR
from trocr_jax.engine import Engine
from trocr_jax.memory import bytes_per_image, default_batch_size
from trocr_jax.opening import is_exact, to_device
from trocr_jax.processing.image import ImageProcessor

PATHS = sorted(str(path) for path in SAMPLES.glob("*.png"))
OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


def engine(*, batch_size=2, read_ahead=2, open_=lambda item: item, launch=lambda batch: lambda: [-i for i in batch]):
    return Engine(lambda item: lambda: open_(item), launch, batch_size=batch_size, read_ahead=read_ahead)


def num_threads():
    return sum(thread.name.startswith("trocr_jax") for thread in threading.enumerate())


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 5])
def test_results_come_in_order_and_no_more_is_taken_than_allowed(read_ahead):
    seen = 0

    def items():
        nonlocal seen
        while True:
            seen += 1
            yield seen

    results = engine(read_ahead=read_ahead).run(items())
    for i in range(1, 40):
        assert next(results) == -i
        batch = (i + 1) // 2
        assert seen <= 2 * (batch + read_ahead)
    assert num_threads() > 0
    results.close()
    assert num_threads() == 0


def test_alike_items_share_a_batch():
    lengths, batches = [5, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], []

    def launch(batch):
        batches.append([lengths[item] for item in batch])
        return lambda: batch

    made = Engine(lambda item: lambda: item, launch, batch_size=2, read_ahead=5, likeness=lambda item: lengths[item])
    assert list(made.run(range(len(lengths)))) == list(range(len(lengths)))
    # Windows of three batches, of which the batch with the earliest item goes first.
    assert batches == [[4, 5], [1, 1], [5, 9], [2, 3], [6], [5, 5]]


def test_a_result_that_is_an_error_is_raised_in_its_turn():
    def launch(batch):
        return lambda: [KeyError("no third") if item == 3 else item for item in batch]

    results = Engine(lambda item: lambda: item, launch, batch_size=2, read_ahead=5, likeness=lambda item: -item).run(
        range(20)
    )
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(KeyError, match="no third"):
        next(results)


def test_items_before_one_that_cannot_be_opened_are_not_lost():
    def open_(item):
        if item == 5:
            raise OSError("no fifth")
        return item

    results = engine(read_ahead=7, open_=open_).run(range(20))
    assert list(itertools.islice(results, 5)) == [0, -1, -2, -3, -4]
    with pytest.raises(OSError, match="no fifth"):
        next(results)


def test_no_items_and_a_last_batch_that_is_not_full():
    assert list(engine().run([])) == []
    assert list(engine(batch_size=4).run(range(6))) == [0, -1, -2, -3, -4, -5]
    assert num_threads() == 0


def test_images_are_opened_and_launched_while_the_device_works():
    events = [threading.Event() for _ in range(6)]
    launched = []

    def launch(batch):
        launched.append(batch)

        def wait():
            # The third batch is open and the second launched before anybody has waited for the first.
            assert all(event.wait(timeout=60) for event in events)
            assert launched[:2] == [[0, 1], [2, 3]]
            return batch

        return wait

    def open_(item):
        events[item].set()
        return item

    assert list(engine(open_=open_, launch=launch).run(range(6))) == list(range(6))


@pytest.mark.parametrize("read_ahead", [0, 2])
def test_an_error_of_the_input_comes_behind_the_results_before_it(read_ahead):
    def items():
        yield from range(5)
        raise KeyError("no more")

    results = engine(read_ahead=read_ahead).run(items())
    assert list(itertools.islice(results, 5)) == [0, -1, -2, -3, -4]
    with pytest.raises(KeyError, match="no more"):
        next(results)
    assert num_threads() == 0


@pytest.mark.parametrize("fails_at_launch", [True, False])
def test_batches_are_halved_until_they_fit(fails_at_launch):
    sizes = []

    def launch(batch):
        def wait():
            if len(batch) > 3:
                raise OUT_OF_MEMORY
            sizes.append(len(batch))
            return batch

        if fails_at_launch and len(batch) > 3:
            raise OUT_OF_MEMORY
        return wait

    made = engine(batch_size=16, launch=launch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(made.run(range(60))) == list(range(60))
    said = [str(warning.message).split(": ")[1] for warning in caught]
    assert said == [f"going on with batch_size={size}" for size in (8, 4, 2)]
    assert made.batch_size == 2
    assert set(sizes) == {2}


def test_what_was_launched_before_a_failure_is_not_lost():
    def launch(batch):
        if 5 in batch:
            raise ValueError("no place for 5")
        return lambda: batch

    results = []
    with pytest.raises(ValueError, match="no place for 5"):
        results.extend(engine(launch=launch).run(range(20)))  # in place: what came before stays
    assert results == list(range(4))


def test_an_image_that_does_not_fit_alone_is_an_error():
    def launch(batch):
        raise OUT_OF_MEMORY

    results = engine(launch=launch).run(range(4))
    with pytest.warns(UserWarning, match="batch_size=1"), pytest.raises(MemoryError, match="lower num_beams"):
        next(results)
    assert num_threads() == 0


def test_other_errors_of_the_device_are_raised_as_they_are():
    def launch(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost")

    with pytest.raises(jax.errors.JaxRuntimeError, match="is lost"):
        next(engine(launch=launch).run(range(4)))


ODD = ImageProcessor(rescale_factor=0.0123, image_mean=(0.1, 0.2, 0.3), image_std=(0.3, 0.7, 1.1))
PROCESSORS = {name: ImageProcessor.from_dict(content) for name, content in DIALECTS.items()} | {
    "imagenet": ImageProcessor(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)),
    "not normalised": ImageProcessor(do_normalize=False),
    "not rescaled": ImageProcessor(do_rescale=False),
    "untouched": ImageProcessor(do_rescale=False, do_normalize=False),
    "odd": ODD,
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixel_values_on_the_device_are_those_of_the_host(name, monkeypatch):
    processor = dataclasses.replace(PROCESSORS[name], do_resize=False, do_center_crop=False)
    images = [np.random.default_rng(seed).permuted(np.arange(768) % 256).reshape(16, 16, 3) for seed in (0, 1)]
    images = [image.astype(np.uint8) for image in images]
    expected = processor(images)
    # Arithmetic cannot give a division by anything but a power of two: a table does.
    assert is_exact(processor) == (name not in ("odd", "imagenet", "numbers_for_all_channels"))
    for exact in {is_exact(processor), False}:
        monkeypatch.setattr("trocr_jax.opening.is_exact", lambda _, exact=exact: exact)
        found = np.asarray(to_device(images, 3, processor))
        assert found.tobytes() == np.concatenate([expected, expected[:1]]).tobytes()


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


def test_images_may_be_closed_once_the_iterator_goes_on(ocr):
    def images():
        for path in PATHS:
            with Image.open(path) as image:
                yield image
        buffer = np.zeros((20, 100), np.uint8)
        for level in (0, 255):
            buffer[:, 30:60] = level
            yield buffer

    expected = [*ocr(PATHS), *ocr([np.zeros((20, 100), np.uint8), np.zeros((20, 100), np.uint8)])]
    found = list(ocr.stream(images(), read_ahead=2, skip_blank=True))
    assert [line.text for line in found[:-2]] == [line.text for line in expected[:-2]]
    assert [line.finish_reason == "blank" for line in found[-2:]] == [True, False]
    with pytest.raises(ValueError, match="read_ahead is -1"):
        ocr.stream(PATHS, read_ahead=-1)


def test_a_broken_image_is_raised_behind_the_results_before_it(ocr):
    results = ocr.stream([*PATHS[:2], "missing.png", PATHS[2]], on_error="raise")
    assert [next(results).source for _ in range(2)] == PATHS[:2]
    with pytest.raises(ValueError, match="missing"):
        next(results)


def test_halved_batches_read_the_same(ocr, monkeypatch):
    expected = list(ocr.stream(PATHS, batch_size=2, read_ahead=0))
    launch = trocr_jax.reading.launch

    def limited(*arguments, num_images, **inputs):
        if num_images > 2:
            raise OUT_OF_MEMORY
        return launch(*arguments, num_images=num_images, **inputs)

    monkeypatch.setattr("trocr_jax.reading.launch", limited)
    with pytest.warns(UserWarning, match="batch_size=2") as caught:
        assert list(ocr.stream(PATHS, batch_size=4, read_ahead=0)) == expected
    assert len(caught) == 1


@pytest.mark.parametrize("num_beams", [1, 4])
def test_what_an_image_takes_in_memory_is_known(ocr, num_beams, monkeypatch):
    found = []

    def compiled(*arguments, **static):
        found.append((run.lower(*arguments, **static).compile().memory_analysis(), static["length"]))
        return run(*arguments, **static)

    run = trocr_jax.decoding.generate.run
    monkeypatch.setattr("trocr_jax.decoding.generate.run", compiled)
    ocr(PATHS[:4], num_beams=num_beams)
    ((memory, length),) = found
    bound = 4 * bytes_per_image(ocr.config, ocr.model.policy, num_beams, length)
    assert memory.temp_size_in_bytes < bound < 4 * memory.temp_size_in_bytes


def test_batches_are_made_to_fit_the_device(ocr, monkeypatch):
    def size(num_beams):
        return default_batch_size(ocr.config, ocr.model.policy, num_beams, 64)

    assert size(1) == 8
    device = types.SimpleNamespace(memory_stats=lambda: None, platform="gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert size(1) == 64  # a device that does not say
    image = bytes_per_image(ocr.config, ocr.model.policy, 1, 64)
    for free, expected in ((1000, 64), (10.1, 6), (0, 1)):
        limit = int(free * image) + 500
        device.memory_stats = lambda limit=limit: {"bytes_limit": limit, "bytes_in_use": 500}
        assert size(1) == expected
    device.memory_stats = lambda: {"bytes_limit": int(10.1 * image)}
    assert 1 <= size(4) < 6
    # Of a mesh's devices that with the least room decides, and what JAX computes on otherwise does not count.
    roomy = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000 * image}, platform="gpu")
    for others, expected in (([roomy, device], 6), ([roomy], 64)):
        mesh = types.SimpleNamespace(devices=np.array(others), local_devices=others, is_multi_process=False)
        assert default_batch_size(ocr.config, ocr.model.policy, 1, 64, mesh) == expected
    roomy.platform = "cpu"
    assert default_batch_size(ocr.config, ocr.model.policy, 1, 64, mesh) == 8
