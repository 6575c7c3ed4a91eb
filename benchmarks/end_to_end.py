"""From a folder of PNG files to texts, image decoding included, beside what a user would pick instead.

usage: python -m benchmarks.end_to_end [--images 1000] [--batch 32] [--num-beams 1] [--peers NAME ...] [--runs 5]

The embedded model over lines of text: real ones where there are any, else drawn ones (benchmarks/lines.py). Peers open,
resize and decode with transformers' own processor and tokenizer, one batch after the other. The pixels of the two sides
are equal, so that the texts are.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile

from benchmarks import machine, twin
from benchmarks.contenders import REFERENCE, chosen
from benchmarks.field import Field, policies
from benchmarks.lines import FOLDER, some_lines
from benchmarks.report import fastest, machine_lines, ratio, table
from benchmarks.rounds import share_equal
from trocr_jax.evaluation.metrics import character_error_rate


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    for name, default in (("images", 1000), ("batch", 32), ("num-beams", 1), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers", nargs="*", metavar="NAME", default=[REFERENCE])
    parser.add_argument("--lines", type=pathlib.Path, default=FOLDER, help="folder of zip files of lines")
    options = parser.parse_args()
    lines, source = some_lines(options.images, options.lines)
    references = [text.upper() for _, text in lines]
    field = Field(chosen(options.device, policies(), options.peers), twin.embedded_in_torch(), options.device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/{i:05}.png" for i in range(len(lines))]
            for path, (image, _) in zip(paths, lines, strict=True):
                image.save(path)
            request = {"paths": paths, "batch": options.batch, "options": {"num_beams": options.num_beams}}
            results = field.ask_in_turn({"do": "read", **request}, options.runs)
    finally:
        field.close()
    ours = fastest(results, is_ours=True)
    rows = []
    for name, result in results.items():
        if "error" in result:
            rows.append([name, result["error"], "", "", "", ""])
            continue
        rates = [len(lines) / seconds for seconds in result["seconds"]]
        reference = results.get(REFERENCE, {}).get("texts")
        rows.append([
            name,
            f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})",
            f"{1000 * statistics.median(result['processor_seconds']) / len(lines):.1f}",
            ratio(result["seconds"], results[ours]["seconds"]) if ours else "",
            f"{share_equal(result['texts'], reference):.1%}" if reference else "",
            f"{character_error_rate([text.upper() for text in result['texts']], references):.2%}",
        ])  # fmt: skip
    beams = "greedy" if options.num_beams == 1 else f"{options.num_beams} beams"
    print(f"# {len(lines)} PNG files to texts: {source}, batch {options.batch}, {beams}\n")
    print(machine_lines(machine.describe("benchmarks.end_to_end"), field.versions) + "\n")
    headers = ["", "lines/s, median (range)", "processor ms/line", f"time over {ours}", "texts equal", "CER"]
    print(table(headers, rows))


if __name__ == "__main__":
    main()
