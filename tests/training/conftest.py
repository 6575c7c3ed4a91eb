"""What the tests of training share."""

from __future__ import annotations

import pytest

from tests.training.runs import run
from tests.training.small import small_ocr


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
