"""OpenVINO's side, through optimum-intel. It chooses the precision itself: bfloat16 where the processor has it."""

from __future__ import annotations

import sys
from typing import Any

import openvino
from optimum.intel import OVModelForVision2Seq
from optimum.intel.version import __version__

from benchmarks.contenders import transformers_side
from benchmarks.contenders.exported import exported


class Reader(transformers_side.Reader):
    """The model converted once, then compiled."""

    def _load(self, folder: str) -> Any:
        path = exported(folder, __name__)
        return OVModelForVision2Seq.from_pretrained(path, device="CPU")

    def versions(self) -> dict[str, str]:
        compiled = self._model.encoder.request
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        own = {"openvino": openvino.__version__.split("-")[0], "in": precision, "optimum-intel": __version__}
        return own | super().versions()


if __name__ == "__main__":
    OVModelForVision2Seq.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])
