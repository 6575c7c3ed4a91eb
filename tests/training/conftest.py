"""What the tests of training share."""

from __future__ import annotations

import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.conftest import compilation_options, set_compilation_options
from tests.training.runs import run
from tests.training.small import small_ocr
from trocr_jax.compilation_cache import enable_compilation_cache


@pytest.fixture(scope="package", autouse=True)
def programs(tmp_path_factory):
    """Each training makes its step anew, mostly the same one: the second loads what the first compiled."""
    before = compilation_options()
    compilation_cache.reset_cache()
    enable_compilation_cache(tmp_path_factory.mktemp("programs"))
    yield
    set_compilation_options(before)


@pytest.fixture(scope="package")
def ocr():
    return small_ocr()


@pytest.fixture(scope="package")
def folder(ocr, tmp_path_factory):
    """Holds `model`, what trainings start from, and `whole`, one without interruption."""
    folder = tmp_path_factory.mktemp("fit")
    ocr.save_pretrained(folder / "model")
    assert run(folder, folder / "whole") == 0
    return folder
