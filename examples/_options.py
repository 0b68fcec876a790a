# SPDX-License-Identifier: MIT
"""The command line options that the examples share; a bad value gets argparse's one-line error."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch


def make_parser(description: str, output: str, threads: int) -> argparse.ArgumentParser:
    """A parser with ``--output``, ``--seed``, ``--device`` and ``--threads``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=_png, default=Path(output), help="the PNG to write (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of all random numbers (default: %(default)s)")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", choices=devices, default=devices[-1], help="(default: %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=threads, help="on the CPU (default: %(default)s)")
    return parser


def configure_torch(threads: int) -> None:
    """Apply ``--threads``, and make convolutions on a GPU as exact as on the CPU."""
    torch.set_num_threads(threads)
    # TF32 would make eager PyTorch, and with it every error budget, a thousand times coarser.
    torch.backends.cudnn.allow_tf32 = False


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least ``minimum``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got {text!r}")
        return int(text)

    return convert


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a .png file in an existing folder, got {text!r}")
    return path
