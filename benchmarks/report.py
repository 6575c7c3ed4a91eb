"""What a run found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.contenders import OURS, REFERENCE

Results = Mapping[str, Mapping[str, Any]]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def milliseconds(seconds: Sequence[float]) -> str:
    """Median and range."""
    low, middle, high = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """The ratio of medians, and the range of the ratios of rounds if there are several that both took part in."""
    each = [a / b for a, b in zip(slow, fast, strict=False)]
    text = f"{statistics.median(slow) / statistics.median(fast):.2f}"
    return f"{text} ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else text


def measured(results: Results) -> dict[str, Mapping[str, Any]]:
    """Those that could run."""
    return {name: result for name, result in results.items() if result.get("seconds")}


def fastest(results: Results, *, is_ours: bool) -> str | None:
    """The one of least median among ours, on this Python's jax, or among others'; None if none could run."""
    wanted = (lambda name: name.startswith(f"{OURS} ")) if is_ours else (lambda name: not name.startswith(OURS))
    found = {name: result for name, result in measured(results).items() if wanted(name)}
    return min(found, key=lambda name: statistics.median(found[name]["seconds"]), default=None)


def title(workload: Mapping[str, Any]) -> str:
    """Model, batch, beams and tokens in words."""
    beams = "greedy" if workload["num_beams"] == 1 else f"beam {workload['num_beams']}"
    images = "" if workload["num_images"] == workload["batch"] else f", {workload['num_images']} images"
    tokens = f"{workload['new_tokens']} tokens" if workload["new_tokens"] else "natural stops"
    return f"{workload['model']}, batch {workload['batch']}, {beams}{images}, {tokens}"


def workload_table(workload: Mapping[str, Any]) -> str:
    """All contenders at one workload."""
    results = workload["results"]
    ours, has_text = fastest(results, is_ours=True), any("character_error_rate" in r for r in results.values())
    headers = ["", "ms, median (range)", f"over {ours or OURS}", "processor s", "over", "first run s", "ids equal"]
    headers.append("CER" if has_text else "floor ms (times it)")
    rows = []
    for name, result in results.items():
        if "error" in result:
            rows.append([name, result["error"], *[""] * (len(headers) - 2)])
            continue
        seconds = result["seconds"]
        rows.append([
            name,
            milliseconds(seconds) + ("" if len(seconds) > 1 else ", one run"),
            ratio(seconds, results[ours]["seconds"]) if ours else "",
            f"{statistics.median(result['processor_seconds']):.2f}",
            ratio(result["processor_seconds"], results[ours]["processor_seconds"]) if ours else "",
            f"{result['first_seconds']:.1f}",
            f"{result['share_equal']:.1%}" if "share_equal" in result else "",
            _last_cell(result),
        ])  # fmt: skip
    return table(headers, rows)


def _last_cell(result: Mapping[str, Any]) -> str:
    if "character_error_rate" in result:
        return f"{result['character_error_rate']:.2%}"
    if "floor_seconds" in result:
        floor = result["floor_seconds"]
        return f"{1000 * floor:.0f} ({statistics.median(result['seconds']) / floor:.1f})"
    return ""


def summary_table(workloads: Sequence[Mapping[str, Any]]) -> str:
    """Our fastest beside the best peer and transformers in float32, a row each workload."""
    headers = ["", "ours, ms", "best peer, ms", "best peer over ours", f"{REFERENCE} over ours", "over float32 alone"]
    rows = []
    for workload in workloads:
        results = measured(workload["results"])
        ours, best = fastest(results, is_ours=True), fastest(results, is_ours=False)
        if ours is None:
            continue
        seconds = results[ours]["seconds"]
        row = [title(workload), f"{ours.removeprefix(OURS).strip()}: {milliseconds(seconds)}"]
        row.append(f"{best}: {milliseconds(results[best]['seconds'])}" if best else "")
        strict = results.get(f"{OURS} float32")
        for slow, fast in ((best, results[ours]), (REFERENCE, results[ours]), (REFERENCE, strict)):
            has_both = slow in results and fast is not None
            row.append(ratio(results[slow]["seconds"], fast["seconds"]) if has_both else "")
        rows.append(row)
    return table(headers, rows)


def machine_lines(machine: Mapping[str, Any], versions: Mapping[str, Mapping[str, str]]) -> str:
    """Machine, command and versions, as a list."""
    lines = [
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction sets'])}), "
        f"{machine['memory'] / 2**30:.0f} GiB, load {machine['load average']:.1f} at the start",
        f"Python {machine['python']}, commit {machine['commit']}, {machine['date']}",
        *(f"{name}={value}" for name, value in machine["environment"].items()),
        f"`{machine['command']}`",
    ]
    for name, packages in versions.items():
        lines.append(f"{name}: " + ", ".join(f"{package} {version}" for package, version in packages.items()))
    return "\n".join(f"- {line}" for line in lines)


def capacity_lines(run: Mapping[str, Any]) -> str:
    """Measured rates and peak memory, as a list."""
    lines = []
    if rates := run.get("rates"):
        products = ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in rates["matmul"].items())
        lines.append(f"matrix products {products} GFLOP/s, {rates['bandwidth'] / 1e9:.1f} GB/s read")
    for model, peaks in run["peak_memory"].items():
        sizes = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in peaks.items())
        lines.append(f"highest resident size, {model}, GB: {sizes}")
    return "\n".join(f"- {line}" for line in lines)


def report(run: Mapping[str, Any]) -> str:
    """The whole of a run."""
    parts = [
        "# trocr_jax beside what else reads with the same weights",
        machine_lines(run["machine"], run["versions"]) + "\n" + capacity_lines(run),
    ]
    parts += ["## In short", summary_table(run["workloads"])]
    for workload in run["workloads"]:
        parts += [f"## {title(workload)}", workload_table(workload)]
    return "\n\n".join(parts) + "\n"
