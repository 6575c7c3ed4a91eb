"""How good confidences are before and after calibration, on rendered lines, as a Markdown table and a picture.

usage: python -m benchmarks.calibration [--lines N] [--seed S] [--num-beams K] [--plot reliability.png]

Lines as those of benchmarks/boxes.py are blurred, bleached and made noisy so far that the embedded model misreads some
30 % of them. Every second line is fitted on, the others are what is reported: the expected calibration error in 15 bins
of equal size beside that which a perfect model has by chance on as many, the mean negative log-likelihood and the Brier
score, and the change of the negative log-likelihood with its standard error.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.boxes import CONDITIONS, faces, random_text, render
from trocr_jax import TrOCR
from trocr_jax.calibration import Calibration, calibration_error, mean_nll
from trocr_jax.results import judge

BINS = 15
INK, FAINT, BEFORE, AFTER = "#222222", "#dddddd", "#c8562a", "#1f6fb2"


def worn(image: Image.Image, draw: random.Random) -> Image.Image:
    """The image with blur, less contrast and noise, each of any strength from none to illegible."""
    strength = draw.random()
    image = image.filter(ImageFilter.GaussianBlur(strength * draw.uniform(0.5, 1.0) * image.height / 14))
    levels = 127 + (np.asarray(image, float) - 127) * (1 - 0.5 * strength * draw.random())
    deviation = 90 * strength * draw.random()
    levels += np.random.default_rng(draw.randrange(2**32)).normal(0, deviation, levels.shape)
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def worn_lines(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """(images, their texts)."""
    draw, kinds, images, texts = random.Random(seed), list(faces().values()), [], []
    for i in range(count):
        texts.append(random_text(draw))
        condition = list(CONDITIONS)[i // len(kinds) % len(CONDITIONS)]
        images.append(worn(render(texts[-1], kinds[i % len(kinds)], condition, draw)[0], draw))
    return images, texts


def by_chance(confidences: np.ndarray, draws: int = 200) -> float:
    """The calibration error of confidences that are right exactly as often as they say."""
    draw = np.random.default_rng(0)
    errors = [calibration_error(confidences, draw.random(len(confidences)) < confidences, BINS) for _ in range(draws)]
    return float(np.mean(errors))


def rows(what: str, before: np.ndarray, after: np.ndarray, is_right: np.ndarray):
    """The table's rows of one kind of confidence."""
    for name, confidences in (("before", before), ("after", after)):
        yield (
            f"| {what}, {name} | {calibration_error(confidences, is_right, BINS):.4f} | {by_chance(confidences):.4f} "
            f"| {mean_nll(confidences, is_right):.4f} | {np.mean((confidences - is_right) ** 2):.4f} |"
        )


def nll_change(before: np.ndarray, after: np.ndarray, is_right: np.ndarray) -> str:
    """The mean change of the negative log-likelihood with its standard error."""
    one_by_one = [
        mean_nll(after[i : i + 1], is_right[i : i + 1]) - mean_nll(before[i : i + 1], is_right[i : i + 1])
        for i in range(len(before))
    ]
    return f"{np.mean(one_by_one):+.4f} ± {np.std(one_by_one) / len(one_by_one) ** 0.5:.4f}"


def draw_reliability(panels, path: str) -> None:
    """Draws share right over confidence, before and after, one panel for each (title, before, after, is_right)."""
    scale, side, margin = 2, 300, 56  # drawn at twice the size, for smooth lines
    width, height = len(panels) * (side + 2 * margin) - margin // 2, side + 2 * margin + 10
    image = Image.new("RGB", (scale * width, scale * height), "white")
    for i, (title, *values) in enumerate(panels):
        _draw_panel(
            image, title, *values, origin=(i * (side + 2 * margin) + margin, margin - 10), side=side, scale=scale
        )
    image.save(path)


def _draw_panel(image, title, before, after, is_right, *, origin, side, scale) -> None:
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * scale)

    def at(x: float, y: float) -> tuple[float, float]:
        return scale * (origin[0] + x * side), scale * (origin[1] + (1 - y) * side)

    for tick in np.linspace(0, 1, 6):
        pen.line([at(tick, 0), at(tick, 1)], FAINT, scale)
        pen.line([at(0, tick), at(1, tick)], FAINT, scale)
        pen.text(at(tick, -0.025), f"{tick:.1f}", INK, font, "mt")
        pen.text(at(-0.025, tick), f"{tick:.1f}", INK, font, "rm")
    pen.line([at(0, 0), at(1, 1)], "#888888", scale)
    pen.text(at(0.5, 1.04), title, INK, ImageFont.load_default(13 * scale), "mb")
    pen.text(at(0.5, -0.095), "mean confidence of a bin", INK, font, "mt")
    pen.text(at(0.02, 0.98), "share right", INK, font, "lt")
    for k, (name, colour, values) in enumerate((("before", BEFORE, before), ("after", AFTER, after))):
        order = np.array_split(np.argsort(values, kind="stable"), BINS)
        points = [at(values[part].mean(), is_right[part].mean()) for part in order]
        pen.line(points, colour, 2 * scale)
        for x, y in points:
            pen.ellipse((x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale), colour, "white", scale)
        x, y = at(0.68, 0.14 - 0.07 * k)
        pen.line([(x, y), (x + 20 * scale, y)], colour, 2 * scale)
        pen.text((x + 26 * scale, y), name, INK, font, "lm")


def main() -> None:
    """Prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--plot", metavar="PNG")
    options = parser.parse_args()
    images, texts = worn_lines(options.lines, options.seed)
    found = TrOCR.from_pretrained()(images, batch_size=32, num_beams=options.num_beams)
    calibration = Calibration.fit(*judge(found[::2], texts[::2]))
    panels = []
    print(f"{options.lines} lines, {options.num_beams} beams, half fitted on; the other half:\n")
    print(f"| confidence | calibration error, {BINS} bins | by chance | NLL | Brier |\n|---|---|---|---|---|")
    judged = zip(
        ("lines", "words"), (calibration.lines, calibration.words), judge(found[1::2], texts[1::2]), strict=True
    )
    for what, scaling, held_out in judged:
        log_probs, is_right = np.array([row[0] for row in held_out]), np.array([row[1] for row in held_out])
        before, after = np.exp(log_probs), np.array([scaling(log_prob) for log_prob in log_probs])
        print(*rows(what, before, after, is_right), sep="\n")
        print(
            f"| {what}: {is_right.sum()} of {len(is_right)} right; temperature {scaling.temperature:.3f}, "
            f"bias {scaling.bias:+.3f} | | | {nll_change(before, after, is_right)} | |"
        )
        panels.append((f"{len(is_right)} {what}", before, after, is_right))
    if options.plot:
        draw_reliability(panels, options.plot)


if __name__ == "__main__":
    main()
