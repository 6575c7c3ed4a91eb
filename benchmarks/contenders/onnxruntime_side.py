"""ONNX Runtime's side, through optimum-onnx."""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime
import optimum.version
from optimum.onnxruntime import ORTModelForVision2Seq

from benchmarks.contenders import transformers_side
from benchmarks.contenders.exported import exported


class Reader(transformers_side.Reader):
    """The model exported to ONNX once, then loaded."""

    def _load(self, folder: str) -> Any:
        provider = "CUDAExecutionProvider" if self._device.type == "cuda" else "CPUExecutionProvider"
        settings = onnxruntime.SessionOptions()
        # As for OpenMP: threads that spin while they wait take time from each other on a busy machine.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options = {"provider": provider, "session_options": settings}
        path = exported(folder, __name__)
        return ORTModelForVision2Seq.from_pretrained(path, **options)

    def versions(self) -> dict[str, str]:
        own = {"onnxruntime": onnxruntime.__version__, "optimum": optimum.version.__version__}
        return own | super().versions()


if __name__ == "__main__":
    ORTModelForVision2Seq.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
