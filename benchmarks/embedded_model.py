"""Trains the model inside the package: printed lines, drawn and scanned, of up to about 75 characters.

usage: python -m benchmarks.embedded_model --data FOLDER --texts FILE ... --output FOLDER [--start ID_OR_FOLDER] [...]

FOLDER holds uw3_en_print.zip, ehri_en_typed.zip and sroie_en_receipts.zip (see `trocr_jax.datasets`), each with train/
and val/. Drawn lines have the texts' words and this machine's fonts: those that were used are the Debian packages in
benchmarks/embedded_fonts.txt. The model to start from, by default the package's first one, from this repository's
history, is made to take images of IMAGE_SIZE, and keeps what it has learned. It is trained twice (STAGES); the result
is in float16/ of the output. An interrupted training goes on where the same command is given again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import pathlib
import re
import subprocess
import tarfile
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from rapidfuzz.distance import Levenshtein

from benchmarks.embedded_typed import typed_lines
from benchmarks.embedded_words import SHORT, short_words, with_cut_words, with_receipts, with_straight_quotes
from trocr_jax import TrOCR
from trocr_jax.allocator import keep_freed_memory
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.datasets import open_dataset
from trocr_jax.datasets.example import Example
from trocr_jax.datasets.fonts import FOLDERS
from trocr_jax.datasets.synthetic import SyntheticLines, synthetic_lines
from trocr_jax.training import TextEncoder, fit, with_image_size

IMAGE_SIZE = (32, 512)  # height and width in pixels; lines of at most 30 characters had (32, 320)
MOST_CHARACTERS, MOST_TOKENS = 76, 48
BATCH = 32
LEAST_READ = 0.75  # of a label's letters, for its case to be known
# Shares of all images that are scanned lines, mostly changed; the others are drawn.
SHARES = {"uw3_en_print": 0.02, "ehri_en_typed": 0.113, "sroie_en_receipts": 0.146}
TYPED_SHARE, SHORT_SHARE = 0.14, 0.04  # of all images, drawn as a typewriter leaves them, and of a few characters
# Families of no training line: what is said of unseen fonts is measured on them.
HELD_OUT = ("B612", "Caladea", "Cantarell", "CharisSIL", "ClearSans", "Vollkorn")
FACES_OF_A_FAMILY = 4
START = "0816fc3:trocr_jax/assets/trocr-nano-printed"  # a commit, and the folder of the package's first model in it
FONTS = "benchmarks/embedded_fonts.txt"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training, of what the one before has left."""

    name: str
    steps: int  # of BATCH lines
    learning_rate: float
    seed: int
    # Whether drawn words are such as on receipts and cut off as well.
    has_receipts: bool


STAGES = (Stage("first", 9000, 5e-4, 0, False), Stage("second", 1500, 2e-4, 1, True))


def model_to_start_from(folder: pathlib.Path) -> pathlib.Path:
    """The package's first model, taken out of git's history into a folder."""
    command = ["git", "-C", str(pathlib.Path(__file__).parents[1]), "archive", START]
    try:
        archive = subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise SystemExit(
            f"{START} cannot be taken out of git's history ({reason}); run this in a full clone of the repository, or "
            "name a model to start from by --start"
        ) from error
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")
    return folder


def family(path: str) -> str:
    """A font file's family, by the first word of its name."""
    return re.split(r"[-_ \[]", pathlib.Path(path).stem)[0]


def some_faces(lines: SyntheticLines, *, held_out: bool) -> SyntheticLines:
    """The lines in the faces of training, a few of each family, or in those held out."""
    families = collections.defaultdict(list)
    for face in lines.faces:
        if family(face.path).startswith(HELD_OUT) == held_out:
            families[family(face.path)].append(face)
    missing = [name for name in HELD_OUT if not any(found.startswith(name) for found in families)]
    if held_out and missing:
        raise ValueError(f"fonts of {', '.join(missing)} are missing: install the packages in {FONTS}")
    random = np.random.default_rng(0)
    chosen = [random.permutation(len(faces))[:FACES_OF_A_FAMILY] for faces in families.values()]
    faces = [faces[i] for faces, places in zip(families.values(), chosen, strict=True) for i in places]
    return dataclasses.replace(lines, faces=faces)


def cased(ocr: TrOCR, lines: Sequence[Example]) -> list[Example]:
    """Lines whose labels are capitals whatever the image has, in the case that a model reads.

    Lines of which it reads less than LEAST_READ of the letters rightly are left out; labels without letters stay.
    """
    texts = [line.text for line in ocr.stream((line.open() for line in lines), batch_size=64)]
    labels = [in_case_of(text, line.text) for text, line in zip(texts, lines, strict=True)]
    return [
        dataclasses.replace(line, text=label) for line, label in zip(lines, labels, strict=True) if label is not None
    ]


def in_case_of(text: str, label: str) -> str | None:
    """A label of capitals in the case of what was read; None where less than LEAST_READ of its letters were.

    Letters that were not have the next one's in their word, or at its end the one's before.

    In:  "Cash1er:", "CASHIER:"
    Out: "Cashier:"
    """
    blocks = Levenshtein.opcodes(label.lower(), text.lower()).as_matching_blocks()
    is_small = {block.a + i: text[block.b + i].islower() for block in blocks for i in range(block.size)}
    letters = [place for place, character in enumerate(label) if character.isalpha()]
    if sum(place in is_small for place in letters) < LEAST_READ * len(letters):
        return None
    for places in (reversed(letters), letters):
        neighbour = -1
        for place in places:
            if place not in is_small and abs(place - neighbour) == 1 and neighbour in is_small:
                is_small[place] = is_small[neighbour]
            neighbour = place
    return "".join(character.lower() if is_small.get(place) else character for place, character in enumerate(label))


def changed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A line cut otherwise, turned, worn or of lower resolution, each at times."""
    if random.random() < 0.5:
        image = _recut(image, random)
    if random.random() < 0.25:
        image = image.rotate(random.uniform(-1, 1), Image.Resampling.BICUBIC, fillcolor=_paper(image))
    wear = random.random()
    if wear < 0.25:  # scans of few dots an inch
        height = int(random.integers(12, 25))
        if height < image.height:
            image = image.resize((max(round(image.width * height / image.height), 8), height), Image.Resampling.BOX)
    elif wear < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    elif wear < 0.45 and image.height > 24:
        image = image.filter((ImageFilter.MinFilter if random.random() < 0.5 else ImageFilter.MaxFilter)(3))
    elif wear < 0.55:
        grey = ImageOps.autocontrast(image.convert("L"))
        limit = random.integers(90, 180)
        image = grey.point(lambda level: 255 if level > limit else 0).convert("RGB")
    return image


def _recut(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """With up to a tenth of its height more or less on each side, and now and then paper behind its end."""
    most = image.height * 0.1
    left, top, right, bottom = (round(random.uniform(-most, most)) for _ in range(4))
    if random.random() < 0.2:
        right += round(random.uniform(0, 0.5) * image.width)
    size = (max(image.width + left + right, 8), max(image.height + top + bottom, 8))
    page = Image.new("RGB", size, _paper(image))
    page.paste(image, (left, top))
    return page


def _paper(image: Image.Image) -> tuple[int, ...]:
    """The colour of a line's left edge."""
    return tuple(int(level) for level in np.median(np.asarray(image)[:, 0], axis=0))


def fitting(ocr: TrOCR, lines: Iterable[Example]) -> list[Example]:
    """Those whose texts have at most MOST_TOKENS tokens."""
    found = [line for line in lines if line.text]
    rows = TextEncoder.of(ocr).encode([line.text for line in found])
    return [line for line, row in zip(found, rows, strict=True) if len(row) <= MOST_TOKENS]


def validation_lines(ocr: TrOCR, data: pathlib.Path, drawn: SyntheticLines) -> list[Example]:
    """Scanned lines, and drawn ones in fonts held out."""
    receipts = cased(ocr, open_dataset(f"{data}/sroie_en_receipts.zip/val")[:500])
    scans = [line for name in ("uw3_en_print", "ehri_en_typed") for line in open_dataset(f"{data}/{name}.zip/val")]
    unseen = some_faces(dataclasses.replace(drawn, seed=drawn.seed + 1000, num_lines=150), held_out=True)
    return fitting(ocr, [*scans, *receipts[:300], *unseen])


def training_lines(ocr: TrOCR, data: pathlib.Path, drawn: SyntheticLines) -> list[Example]:
    """As many lines as `drawn` has, of them scanned ones as SHARES says, each as often as another of its set."""
    scans = []
    for name, share in SHARES.items():
        lines = list(open_dataset(f"{data}/{name}.zip/train"))
        found = fitting(ocr, cased(ocr, lines) if name == "sroie_en_receipts" else lines)
        number = round(share * drawn.num_lines)
        order = np.random.default_rng(0).permutation(len(found))
        scans += [found[order[i % len(found)]] for i in range(number)]
        print(f"{name}: {len(found)} of {len(lines)} lines, {number / len(found):.1f} times", flush=True)
    typed, short = (round(share * drawn.num_lines) for share in (TYPED_SHARE, SHORT_SHARE))
    more = dataclasses.replace(drawn, num_lines=drawn.num_lines - len(scans) - typed - short)
    more = some_faces(more, held_out=False)
    families = {family(face.path) for face in more.faces}
    print(f"{len(more)} drawn lines, {len(more.faces)} faces of {len(families)} families", flush=True)
    few = short_words(drawn.words, np.random.default_rng(drawn.seed))
    shorter = dataclasses.replace(more, words=few, most_characters=SHORT, num_lines=short, seed=drawn.seed + 3000)
    return [
        *scans,
        *fitting(ocr, more),
        *fitting(ocr, typed_lines(dataclasses.replace(drawn, num_lines=typed, seed=drawn.seed + 2000))),
        *shorter,
    ]


def lines_to_draw(stage: Stage, options: argparse.Namespace) -> SyntheticLines:
    """As many as the training takes, with its words."""
    drawn = synthetic_lines(
        options.texts,
        num_lines=stage.steps * BATCH,
        fonts=options.fonts,
        seed=stage.seed,
        most_characters=MOST_CHARACTERS,
    )
    random = np.random.default_rng(stage.seed)
    words = with_straight_quotes([word for word in drawn.words if "\ufffd" not in word], random)
    if stage.has_receipts:
        words = with_cut_words(with_receipts(words, random), random)
    return dataclasses.replace(drawn, words=words)


def train(start: pathlib.Path | str, stage: Stage, options: argparse.Namespace) -> pathlib.Path:
    """Trains the model in a folder, or of an id, and returns the folder of the new one."""
    reader = TrOCR.from_pretrained(start)
    drawn = lines_to_draw(stage, options)
    validation = validation_lines(reader, options.data, drawn)
    lines = training_lines(reader, options.data, drawn)
    folder = options.output / stage.name
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = fit(
            with_image_size(reader, IMAGE_SIZE),
            lines,
            validation,
            folder,
            augment=changed,
            resume=True,
            tell=print,
            seed=stage.seed,
            max_steps=stage.steps,
            batch_size=BATCH,
            learning_rate=stage.learning_rate,
            warmup_steps=min(200, stage.steps // 10),
            weight_decay=0.01,
            ema_decay=0.999,
            eval_every=min(1000, max(stage.steps // 2, 1)),
            patience=0,
        )
    print(f"{stage.name}: CER of the validation lines {result.first_cer:.4f} before, {result.best_cer:.4f} after")
    return folder


def main() -> None:
    """Trains, and writes the weights in float16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--texts", nargs="+", required=True, help="of the words to draw, UTF-8")
    parser.add_argument("--fonts", nargs="+", default=FOLDERS, help="files and folders (default: this machine's)")
    parser.add_argument("--start", help="the model to start from (default: the package's first one)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=len(STAGES),
        default=[stage.steps for stage in STAGES],
        help=f"of {BATCH} images, of each training (default: %(default)s)",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    options = parser.parse_args()
    keep_freed_memory()
    model = options.start or model_to_start_from(options.output / "start")
    for stage, steps in zip(STAGES, options.steps, strict=True):
        model = train(model, dataclasses.replace(stage, steps=steps), options)
    convert(model, options.output / "float16", dtype="float16")


if __name__ == "__main__":
    main()
