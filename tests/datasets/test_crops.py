"""Pages that are kept: how many, which go first, and what threads that ask for one page get."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from trocr_jax.datasets import crops
from trocr_jax.datasets.files import Disk
from trocr_jax.processing.image import ImageError


@pytest.fixture
def opened(monkeypatch):
    """The names of the pages decoded so far, none being kept: 400 bytes for a small letter, 800 for a capital."""
    names = []

    def open_image(files, name):
        names.append(name)
        time.sleep(0.2 if len(name) > 1 else 0)
        if name == "damaged":
            raise ImageError(f"{name} cannot be read")
        return Image.new("RGB", (10, 20 if name.isupper() else 10))

    monkeypatch.setattr(crops, "open_image", open_image)
    monkeypatch.setattr(crops, "_pages", crops._Pages())
    return names


def ask_at_once(name):
    """What eight threads get for a page: it, or an error."""
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        return crops.page_image(Disk(), name)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask) for _ in range(8)]
    return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize(
    ("num_bytes", "asked", "decoded"),
    [
        (1000, "abacabac", "abcbc"),  # two pages: what was used last stays, not what came last
        (1200, "abcAcab", "abcAab"),  # the large one takes the places of two
        (100, "aabba", "aba"),  # larger than all that is kept
    ],
)
def test_of_the_pages_that_are_kept_the_one_not_used_for_longest_goes_first(
    opened, monkeypatch, num_bytes, asked, decoded
):
    monkeypatch.setattr(crops, "KEPT_BYTES", num_bytes)
    for name in asked:
        assert crops.page_image(Disk(), name).height == (20 if name.isupper() else 10)
        kept = crops._pages._kept.values()
        assert sum(4 * page.width * page.height for page in kept) <= num_bytes or len(kept) == 1
    assert "".join(opened) == decoded


def test_threads_that_ask_at_once_share_a_page(opened):
    pages = ask_at_once("page")
    assert opened == ["page"]
    assert all(page is pages[0] for page in pages)


def test_an_error_is_raised_in_all_threads_and_not_kept(opened):
    assert [type(error) for error in ask_at_once("damaged")] == [ImageError] * 8
    assert opened == ["damaged"]
    with pytest.raises(ImageError, match="damaged cannot be read"):
        crops.page_image(Disk(), "damaged")
    assert opened == ["damaged"] * 2
