"""`trocr-jax finetune`: trains a model on lines with known texts."""

from __future__ import annotations

import argparse
import logging
import pathlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trocr_jax.allocator import keep_freed_memory
from trocr_jax.commands import Uninterrupted
from trocr_jax.commands.read import positive
from trocr_jax.datasets import FORMATS, Example, formats, open_dataset
from trocr_jax.datasets.augmentation import NAMED

if TYPE_CHECKING:
    from trocr_jax.training import FitResult

DESCRIPTION = f"""\
Trains a model on lines with known texts and keeps the weights that read the validation lines best.

{formats.DESCRIPTION}
DIR is then a model like any other, and may be read with while training goes on. DIR/training holds the log, its curves
and checkpoints, from which --resume goes on after an interruption.
"""
EXAMPLES = """\
examples:
  trocr-jax finetune --train lines/train --val lines/val --output mine
  trocr-jax finetune --model microsoft/trocr-base-handwritten --train IAM/gt_train.txt --val IAM/gt_valid.txt \\
      --output iam --batch-size 8 --schedule inverse_sqrt --learning-rate 2e-5 --warmup-steps 500 \\
      --augment da2
  trocr-jax finetune --train lines/train --val lines/val --output mine --add-characters auto
  trocr-jax read --model mine line.png
"""
# Those that TrainingSettings takes under the same names.
NAMES = (
    "max_steps", "batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay", "not_decayed",
    "max_grad_norm", "label_format", "label_smoothing", "frozen", "lora_rank", "lora_alpha", "lora_pattern",
    "ema_decay", "accumulate", "remat", "fsdp", "seed", "eval_every", "patience", "num_beams", "checkpoint_every",
    "keep",
)  # fmt: skip


# Where the launcher knows the other processes.
DETECTED: Mapping[str, Any] = {}


def process_of(text: str) -> Mapping[str, Any]:
    """HOST:PORT,I/N as `jax.distributed.initialize` takes it."""
    found = re.fullmatch(r"(.+:\d+),(\d+)/(\d+)", text)
    if found is None or int(found[2]) >= int(found[3]):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT,I/N with I from 0 up to but not N")
    return {"coordinator_address": found[1], "process_id": int(found[2]), "num_processes": int(found[3])}


def image_size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH in pixels."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 384x768")
    return int(found[1]), int(found[2])


def add_finetune(commands: Any) -> None:
    """Adds the command to a parser's."""
    parser = commands.add_parser(
        "finetune",
        help="train a model on lines with known texts",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_finetune)
    add = parser.add_argument
    add("--train", required=True, action="append", metavar="DATA", help="lines to train on; may be given several times")
    add("--val", required=True, action="append", metavar="DATA", help="other lines, by which weights are chosen")
    add("--output", required=True, metavar="DIR", help="folder that will hold the model")
    add("--model", metavar="ID_OR_FOLDER", help="what to start from: hub id or folder (default: the embedded model)")
    add("--resume", action="store_true", help="go on with the training in DIR, or start it")
    add("--data-format", choices=tuple(FORMATS), help="DATA's format (default: told by what is there)")
    add(
        "--augment",
        choices=("none", *NAMED),
        default="none",
        help="change images at random as they are trained on (default: none)",
    )
    add(
        "--max-steps",
        type=positive,
        metavar="N",
        help="updates (default: 30 times each line; at least 400, at most 20000)",
    )
    add(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images an update (default: 16, or the next number that devices and --accumulate divide evenly)",
    )
    add("--learning-rate", type=float, metavar="X", help="its peak (default: 5e-5 * 1024 / the decoder's width)")
    add(
        "--image-size",
        type=image_size,
        metavar="HEIGHTxWIDTH",
        help="make images this large, such as 384x768 for long lines (default: the model's size)",
    )
    add("--seed", type=int, metavar="N", help="of the lines' order and of dropout (default: 0)")
    dtypes = ("auto", "float32", "bfloat16")
    add("--dtype", default="auto", choices=dtypes, help="precision, as in `trocr-jax read`; weights are float32 always")
    add(
        "--distributed",
        nargs="?",
        const=DETECTED,
        type=process_of,
        metavar="HOST:PORT,I/N",
        help="train on the devices of N processes: this is process I (0 is the first), the first listens at HOST:PORT. "
        "Each runs the same command; DIR is a folder that all see. Without a value the processes find each other by "
        "what Slurm, Open MPI, Kubernetes or a Cloud TPU says",
    )
    _add_vocabulary(parser)
    _add_optimisation(parser)
    _add_course(parser)


def _add_vocabulary(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("vocabulary").add_argument
    add(
        "--add-characters",
        metavar="CHARACTERS",
        help='characters that get a token each, or "auto": those of the training lines that the tokenizer cannot '
        "spell, or that it spells in several tokens and that come 10 times or more",
    )
    add("--tokenizer", metavar="FOLDER", help="take another tokenizer, from a folder with its files")


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimisation").add_argument
    schedules = ("inverse_sqrt", "cosine", "linear", "constant")
    add("--schedule", choices=schedules, help="how the learning rate falls (default: cosine)")
    add("--warmup-steps", type=int, metavar="N", help="updates it grows over (default: a tenth of all, at most 500)")
    add("--weight-decay", type=float, metavar="X", help="of all but norms and biases (default: 1e-4)")
    add("--not-decayed", metavar="REGEX", help="of weights whose path has this, none (default: norms and biases)")
    add("--max-grad-norm", type=float, metavar="X", help="longer gradients are cut to this; 0 is never (default: 1)")
    add("--label-smoothing", type=float, metavar="X", help="part of the target that is uniform (default: 0)")
    add("--label-format", choices=("fairseq", "hf"), help="text </s>, or <s> text </s> (default: told by the model)")
    add("--freeze", dest="frozen", metavar="REGEX", help="train no weight whose path has this, such as '^encoder/'")
    add("--lora-rank", type=positive, metavar="N", help="train low-rank adapters beside the weights, such as of rank 8")
    add("--lora-alpha", type=float, metavar="X", help="adapters count alpha / rank times (default: twice the rank)")
    add("--lora-pattern", metavar="REGEX", help="kernels that have one (default: queries and values of attention)")
    add("--ema-decay", type=float, metavar="X", help="keep a moving average of the weights, such as 0.999")
    add("--accumulate", type=positive, metavar="N", help="compute a batch in N parts, which takes less memory")
    add(
        "--remat",
        action="store_true",
        default=None,
        help="compute activations twice, for less memory (not on CPU)",
    )
    add("--fsdp", action="store_true", default=None, help="divide weights and optimizer state among the devices")


def _add_course(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("course").add_argument
    add(
        "--eval-every",
        type=positive,
        metavar="N",
        help="read the validation lines every N updates (default: a twentieth of all, 20 to 1000)",
    )
    add("--patience", type=int, metavar="N", help="end after N times without a lower CER; 0 is never (default: 8)")
    add("--num-beams", type=positive, metavar="N", help="beams to read the validation lines with (default: 1)")
    add(
        "--checkpoint-every", type=positive, metavar="N", help="updates that a kill may cost (default: as --eval-every)"
    )
    add("--keep", type=positive, metavar="N", help="checkpoints kept (default: 2)")


def _finetune(options: argparse.Namespace) -> int:
    keep_freed_memory()
    train, validation = (
        [line for path in paths for line in open_dataset(path, format=options.data_format)]
        for paths in (options.train, options.val)
    )
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result = _fit(options, train, validation)
        except KeyboardInterrupt:
            _tell(_interrupted(pathlib.Path(options.output)))
            raise
    if _is_first():
        print("\n".join(to_lines(result, pathlib.Path(options.output))))
    if options.distributed is not None:
        _leave_together()
    return 0


def _interrupted(output: pathlib.Path) -> str:
    """What becomes of a training that is ended there now."""
    from trocr_jax.training.plan import CHECKPOINTS, FOLDER

    steps = [int(step.name) for step in (output / FOLDER / CHECKPOINTS).glob("*") if step.name.isdigit()]
    if not steps:
        return "interrupted before the first checkpoint; the same command starts anew"
    return f"interrupted; the same command with --resume goes on from step {max(steps)}"


def _is_first() -> bool:
    """Whether of several processes this is the one that tells what it came to."""
    import jax

    return jax.process_index() == 0


def _leave_together() -> None:
    """Waits for the other processes.

    JAX does so at a program's end as well, but takes its connections down first: another process that is still at what
    all did last would fail.
    """
    import jax

    jax.distributed.shutdown()


def _fit(options: argparse.Namespace, train: Sequence[Example], validation: Sequence[Example]) -> FitResult:
    with Uninterrupted():
        # Imported only now, so that --help and mistakes in the paths answer at once.
        import jax

        from trocr_jax.compilation_cache import enable_compilation_cache
        from trocr_jax.recognizer import TrOCR
        from trocr_jax.sharding import make_mesh
        from trocr_jax.training import fit, with_image_size

    if options.distributed is not None:
        jax.distributed.initialize(**options.distributed)
    mesh = None if options.distributed is None else make_mesh(jax.devices())
    enable_compilation_cache()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells how long it waits for the disk
    ocr = TrOCR.from_pretrained(options.model, dtype=options.dtype, mesh=mesh)
    if options.image_size is not None:
        ocr = with_image_size(ocr, options.image_size)
        _tell("images are made {} pixels high and {} wide".format(*options.image_size))
    settings = {name: getattr(options, name) for name in NAMES if getattr(options, name) is not None}
    return fit(
        ocr,
        train,
        validation,
        options.output,
        augment=None if options.augment == "none" else options.augment,
        resume=options.resume,
        tokenizer=options.tokenizer,
        add_characters=options.add_characters,
        tell=_tell,
        **settings,
    )


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _tell(str(message))


def _tell(line: str) -> None:
    print(f"trocr-jax: {line}", file=sys.stderr)


def to_lines(result: FitResult, output: pathlib.Path) -> list[str]:
    """What a training came to, in a few lines."""
    steps = f"{result.num_steps} of {result.max_steps}" if result.is_early else result.num_steps
    kept = f"after step {result.best_step}" if result.best_step else "of the model that was started from (step 0)"
    told = [
        f"CER of the validation lines: {100 * result.first_cer:.2f} % before, {100 * result.best_cer:.2f} % now",
        f"{steps} steps were run; {output} holds the weights {kept}",
    ]
    if result.is_early:
        told.append("it ended early, since evaluations found no lower CER as many times in a row as --patience says")
    if result.best_step == 0 and result.first_cer == 0:
        told.append("the model that was started from reads all of them already: longer or harder lines would tell more")
    elif result.best_step == 0:
        told.append("no step read them better than the model that was started from; try a lower --learning-rate")
    if result.num_skipped:
        told.append(
            f"{result.num_skipped} steps changed nothing: their gradients were not finite, or none of their images "
            "could be read"
        )
    return told
