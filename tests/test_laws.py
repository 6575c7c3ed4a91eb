"""The house's laws that a machine can check: which way imports go, and what the library never imports."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

LIBRARY = pathlib.Path(__file__).parents[1] / "trocr_jax"
# Each part may import from itself and from parts above it in this list.
LEVELS = (
    {"version", "replacing", "findings"},
    {"config", "generation_config", "registry", "calibration", "sharding", "sources", "engine"},
    {"allocator", "compilation_cache"},
    {"modeling", "processing", "checkpoints", "decoding"},
    {"model_outputs", "drawing", "memory"},
    {"models", "results", "constraints"},
    {"alignment", "overlays", "journal", "printing", "opening"},
    {"reading", "datasets"},
    {"recognizer"},
    {"evaluation", "official_check", "doctor", "demo"},
    {"training"},
    {"commands"},
    {"cli"},
    {"__main__", "__init__"},
)
FORBIDDEN = {"torch", "transformers", "convert", "tests", "benchmarks"}


def level(part: str) -> int:
    """The place of a module's first name behind trocr_jax in LEVELS."""
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def imports(path: pathlib.Path):
    """(line, full module name) of every import in a file, those inside functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, node.module


def test_imports_go_one_way_and_never_to_torch():
    wrong, seen = [], 0
    for path in LIBRARY.rglob("*.py"):
        own = level(path.relative_to(LIBRARY).with_suffix("").parts[0])
        for line, module in imports(path):
            seen += 1
            parts = module.split(".")
            if parts[0] in FORBIDDEN:
                wrong.append(f"{path}:{line} imports {module}")
            if parts[0] == "trocr_jax" and len(parts) > 1 and level(parts[1]) > own:
                wrong.append(f"{path}:{line} imports upwards: {module}")
    assert seen > 100
    assert not wrong, "\n".join(wrong)


def test_sideways_imports_are_the_listed_ones():
    # Between parts of one level: search and files know the network, whole checkpoints know everything below them.
    allowed = {
        "modeling": set(),
        "processing": {"checkpoints.folder", "checkpoints.hub", "checkpoints.safetensors_writer"},
        "decoding": {"modeling.model", "modeling.output"},
        "checkpoints": {"modeling.model", "processing.image", "processing.tokenizer", "processing.sentencepiece"},
    }
    found = {part: set() for part in allowed}
    for part in allowed:
        for path in LIBRARY.glob(f"{part}/*.py"):
            names = {
                module.removeprefix("trocr_jax.") for _, module in imports(path) if module.startswith("trocr_jax.")
            }
            found[part] |= {name for name in names if name.split(".")[0] in allowed.keys() - {part}}
    found["checkpoints"].discard("processing")  # `from trocr_jax.processing import tokenizer`
    assert not {part: names - allowed[part] for part, names in found.items() if names - allowed[part]}


def test_modeling_and_search_do_not_know_each_other():
    for path in [*LIBRARY.glob("decoding/*.py"), *LIBRARY.glob("modeling/*.py")]:
        if path.name == "generate.py":
            continue  # where the two meet
        other = "modeling" if path.parent.name == "decoding" else "decoding"
        assert not [module for _, module in imports(path) if module.startswith(f"trocr_jax.{other}")], path


def test_reading_an_image_imports_neither_torch_nor_transformers():
    code = (
        "import sys, numpy, trocr_jax; trocr_jax.TrOCR.from_pretrained()(numpy.zeros((8, 80), 'uint8'));"
        "assert not {'torch', 'transformers', 'sentencepiece'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asking_for_the_version_imports_no_jax():
    code = "import sys, trocr_jax.cli; trocr_jax.cli._parser(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
