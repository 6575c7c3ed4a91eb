"""What the tests of training share."""

from __future__ import annotations

import pytest

from tests.conftest import compiled_in_a_hurry


@pytest.fixture(autouse=True, scope="package")
def in_a_hurry():
    with compiled_in_a_hurry():
        yield
