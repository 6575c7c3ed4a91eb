"""What the hub's tests share."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

from tests.checkpoints.hub_server import Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running hub that huggingface_hub in this process takes for the real one, with an empty cache."""
    running = Hub()
    constants = {
        "ENDPOINT": running.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": running.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
        "HF_HUB_DISABLE_TELEMETRY": True,  # or the first request of a process is one of its own
        "HF_HUB_DISABLE_XET": True,  # its storage is not spoken over plain HTTP
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield running
    close_session()
    running.stop()
