"""Time and memory of taking a PyTorch checkpoint in, beside torch and transformers taking in the same file.

usage: python benchmarks/convert.py [--model trocr-base-handwritten] [--runs N]

A random model of an official configuration is saved as pytorch_model.bin in float32. Each job is a process of its own,
the jobs take turns, and the first turn is not counted: it fills the system's file cache. Memory is the highest resident
size of the process above what it had after its imports; pages of a memory-mapped file count, although the system can
take them back. Our job reads, checks and writes the model; the other side's only reads it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from trocr_jax.registry import OFFICIAL

MAKE = """
import json, sys, torch, transformers
folder, content = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(0)
encoder = (transformers.DeiTConfig if content["encoder"]["model_type"] == "deit" else transformers.ViTConfig)
encoder = encoder(**{k: v for k, v in content["encoder"].items() if k != "model_type"})
decoder = transformers.TrOCRConfig(**{k: v for k, v in content["decoder"].items() if k != "model_type"})
config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
model = transformers.VisionEncoderDecoderModel(config=config)
config.save_pretrained(folder)
# The names that the hub's files have, which differ from those in memory.
model.save_pretrained(folder)
import safetensors.torch, os
torch.save(safetensors.torch.load_file(folder + "/model.safetensors"), folder + "/pytorch_model.bin")
os.remove(folder + "/model.safetensors")
"""

# What every job does around its own two lines.
MEASURE = """
import json, sys, time, tempfile, warnings
warnings.simplefilter("ignore")
{imports}
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
open("/proc/self/clear_refs", "w").write("5")  # the highest size starts anew
before, start = memory("VmRSS"), time.perf_counter()
{work}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "bytes": memory("VmHWM") - before}}))
"""
JOBS = {
    "trocr_jax, .bin to native folder": (
        "from trocr_jax.checkpoints.conversion import convert\nimport jax; jax.devices()",
        "with tempfile.TemporaryDirectory(dir=sys.argv[1]) as out: convert(sys.argv[1], out + '/flax')",
    ),
    "trocr_jax, .bin read and checked": (
        "from trocr_jax.checkpoints.conversion import load_checkpoint\nimport jax; jax.devices()",
        "checkpoint = load_checkpoint(sys.argv[1])",
    ),
    "torch.load, .bin": (
        "import torch",
        "state = torch.load(sys.argv[1] + '/pytorch_model.bin', weights_only=True, map_location='cpu')",
    ),
    "transformers, from_pretrained of .bin": (
        "import torch; from transformers import VisionEncoderDecoderModel",
        "model = VisionEncoderDecoderModel.from_pretrained(sys.argv[1])",
    ),
    # That maps the file and reads nothing before a weight is used.
    "transformers, the same and every weight looked at once": (
        "import torch; from transformers import VisionEncoderDecoderModel",
        "model = VisionEncoderDecoderModel.from_pretrained(sys.argv[1])\n"
        "finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())",
    ),
}


def run(code: str, *arguments: str) -> str:
    """The last line that a process printed."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main() -> None:
    """Runs every job in turn and prints a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="trocr-base-handwritten", choices=sorted(OFFICIAL))
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(MAKE, folder, json.dumps(OFFICIAL[options.model].to_dict()))
        size = (pathlib.Path(folder) / "pytorch_model.bin").stat().st_size
        found: dict[str, list[dict[str, float]]] = {name: [] for name in JOBS}
        for turn in range(options.runs + 1):
            for name, (imports, work) in JOBS.items():
                measured = json.loads(run(MEASURE.format(imports=imports, work=work), folder))
                if turn > 0:
                    found[name].append(measured)
    print(f"{options.model}, {size / 1e9:.2f} GB, {options.runs} runs\n")
    print("| job | seconds, median (range) | peak memory over the file's size, median |")
    print("|---|---|---|")
    for name, turns in found.items():
        seconds = [turn["seconds"] for turn in turns]
        memory = statistics.median(turn["bytes"] for turn in turns) / size
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {memory:.2f} |")


if __name__ == "__main__":
    main()
