"""Trainings of the model of `small.py` in processes of their own, which may be killed, and what they leave."""

from __future__ import annotations

import csv
import multiprocessing

from tests.training.small import train

STEPS = 150
WEIGHTS = "flax_model.safetensors"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.small"])


def run(folder, output, max_steps=STEPS, num_images=None, num_devices=1, **changes):
    """The exit status of a process that trains; -9 if it was killed."""
    arguments = (folder / "model", str(folder / "cache"), output, max_steps, num_images, num_devices)
    return status(train, *arguments, **changes)


def status(target, *arguments, **options):
    """The exit status of a process of its own."""
    return statuses(target, [arguments], **options)[0]


def statuses(target, calls, **options):
    """The exit statuses of processes that run at once, each with arguments of its own."""
    processes = [CONTEXT.Process(target=target, args=arguments, kwargs=options) for arguments in calls]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(300)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def rows(folder):
    with (folder / "training" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_checkpoint(output):
    """The step of the last that is whole; 0 where there is none."""
    names = [path.name for path in (output / "training" / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
