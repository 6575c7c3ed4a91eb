"""The code on the documentation's pages: what is in them, a folder that has what they name, and a way to run them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import re
import shlex
import shutil
import subprocess
import zipfile

import matplotlib

import convert.__main__
from tests.checkpoints.test_conversion import reduced, write
from tests.conftest import SAMPLES
from tests.processing.test_tokenizer import train_sentencepiece
from tests.twins import make_oracle, torch_tensors
from trocr_jax import cli
from trocr_jax.checkpoints import conversion, names, store
from trocr_jax.recognizer import EMBEDDED

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# What a command's beginning says of why it is not run here; it is checked for bash's syntax all the same.
NOT_RUN = {
    "python3 -m venv": "makes an environment from the package index; .ci/run runs those of README",
    "pip install": "installs from the package index",
    "python docs/build.py": "tests/test_reference.py runs it",
    "XLA_FLAGS=": "needs a process of its own; tests/test_sharding.py has such processes",
    "xargs": "installs fonts",
    "git archive": "needs a clone with its history",
    "python -m benchmarks.model_card": "reads lines that are not here; tests/training/test_embedded_model.py runs it",
    "python -m benchmarks.embedded_model": "trains for an hour; tests/training/test_embedded_model.py runs it",
    "srun": "needs Slurm",
    "sh -c": "needs Kubernetes",
    "gcloud": "needs a TPU pod",
    "tpu/bin/python": "needs libtpu; tests/test_compile_ahead.py runs it where there is one",
}
# Training as long as the pages show would take minutes; lines are drawn in fonts that every machine has.
MORE_ARGUMENTS = {
    "finetune": ["--max-steps", "2"],
    "synthesize": ["--fonts", str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf")],
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code; `line` is that of its fence, counted from 1."""

    language: str
    code: str
    line: int
    heading: str


def blocks(page):
    """The blocks of a page, in order."""
    found, heading, fence = [], "", None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if fence is not None:
                found.append(Block(lines[fence - 1][3:], "\n".join(lines[fence : number - 1]), fence, heading))
            fence = number if fence is None else None
        elif fence is None and line.startswith("#"):
            heading = line.lstrip("# ")
    assert fence is None, f"{page.name}:{fence} is not closed"
    return found


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(code):
    """The commands of a block for a shell, each as it stands there; comments of whole lines are left out."""
    pending = ""
    for line in code.splitlines():
        if not pending and (not line or line.startswith("#")):
            continue
        pending += line + "\n"
        with contextlib.suppress(ValueError):  # a quotation that goes on
            shlex.split(pending, comments=True)
            if not line.endswith("\\"):
                yield pending.strip()
                pending = ""
    assert not pending, pending


def reason_not_to_run(command):
    """Why a command is not run here, or None."""
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


def run_command(command):
    """What a command writes to stdout; those of this project run in this process. Fails unless its status is 0."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    if words[0] == "trocr-jax":
        main, arguments = cli.main, words[1:]
    elif words[:3] == ["python", "-m", "convert"]:
        main, arguments = convert.__main__.main, words[3:]
    else:
        return subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.PIPE, text=True).stdout
    target = arguments[arguments.index(">") + 1] if ">" in arguments else None
    arguments = arguments[: arguments.index(">")] if target else arguments
    extra = next((more for name, more in MORE_ARGUMENTS.items() if name in arguments[:2]), [])
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main([*arguments, *extra]) == 0, command
    if target is not None:
        pathlib.Path(target).write_text(told.getvalue(), encoding="utf-8")
        return ""
    return told.getvalue()


def run_block(block, page, names):
    """What a block prints: its Python with the page's names so far, or its commands one after the other."""
    if block.language == "python":
        code = block.code.replace('"other", max_steps=20', '"other", max_steps=2')
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(compile("\n" * block.line + code, str(page), "exec"), names)
        return told.getvalue()
    subprocess.run(["bash", "-n"], input=block.code, check=True, text=True)
    return "".join(run_command(command) for command in commands(block.code) if reason_not_to_run(command) is None)


def run_page(page, but=(), languages=("python", "bash", "text")):
    """Runs a page's blocks of some languages below all headings but some; a text is what the one before has to print.

    Returns the names that its Python made.
    """
    names: dict = {"__name__": "page"}
    told = ""
    for block in blocks(page):
        if block.heading in but or block.language not in languages:
            assert block.language in ("python", "bash", "text"), f"{page.name}:{block.line}"
            continue
        if block.language == "text":
            assert told.strip() == block.code.strip(), f"{page.name}:{block.line}"
        else:
            told = run_block(block, page, names)
    return names


def make_stand_ins(folder):
    """Fills a folder with what the pages name; the embedded model stands in for every other but fairseq's."""
    shutil.copytree(SAMPLES, folder / "notebooks" / "samples")
    shutil.copytree(EMBEDDED, folder / "path" / "to" / "checkpoint")
    conversion.convert(EMBEDDED, folder / "microsoft" / "trocr-base-printed", to="torch")
    shutil.copytree(folder / "microsoft" / "trocr-base-printed", folder / "microsoft" / "trocr-base-handwritten")
    (folder / "scans").mkdir()
    for name in ("number.png", "price.png", "words.png"):
        shutil.copy(SAMPLES / name, folder / "scans")
    shutil.copy(SAMPLES / "price.png", folder / "line.png")
    labels = (SAMPLES / "labels.tsv").read_text().splitlines()
    (folder / "lines.tsv").write_text("".join(f"notebooks/samples/{line}\n" for line in labels))
    with zipfile.ZipFile(folder / "lines.zip", "w") as archive:
        for split, lines in (("train", labels[:5]), ("val", labels[5:7]), ("test", labels[7:])):
            archive.writestr(f"{split}/labels.tsv", "\n".join(lines) + "\n")
            for line in lines:
                name = line.split("\t")[0]
                archive.write(SAMPLES / name, f"{split}/{name}")
    (folder / "words.txt").write_text("12.50\n7.00\nRM3.01\n")
    (folder / "book.txt").write_text("A line of text is read from left to right, and so is the next.\n" * 3)
    make_fairseq(folder)


def make_fairseq(folder):
    """A fairseq file of trocr-small's kind, small and random, and a tokenizer for it."""
    config = reduced("trocr-small-printed")
    state = {key: tensor.numpy() for key, tensor in make_oracle(config.to_dict(), seed=3).state_dict().items()}
    tensors = torch_tensors(store.from_torch(state, names.table(config), "the oracle"), config)
    shutil.move(write(folder / "source", "fairseq", tensors, config), folder / "trocr-small-printed.pt")
    train_sentencepiece(folder / "unilm3-cased.model")
