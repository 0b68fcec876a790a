# SPDX-License-Identifier: MIT
"""The limit that everything else is held against: copies on the device, of the sizes that layers have."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from ..traffic import gb_per_s
from .machine import maps_in_turn, replayed
from .record import Found
from .session import Session

# Two ways to read a map once and write one once: a copy by the driver, and one by an ordinary kernel.
COPIES: dict[str, Callable[[Tensor], Tensor]] = {"clone": torch.clone, "negate": torch.neg}
_MB = 1 << 20


def measure(session: Session) -> int:
    """The step ``limit``."""
    machine = session.machine
    sizes = [1 << 12] if machine.dry else [1024 * _MB, 256 * _MB, 64 * _MB, 16 * _MB, 4 * _MB, _MB]

    def work(unit: str) -> Found:
        size = int(unit.split()[0])
        maps = [torch.randn(size // 4, device=machine.device) for _ in range(maps_in_turn(machine, size))]
        timings = replayed(machine, {name: [_on(copy, x) for x in maps] for name, copy in COPIES.items()})
        rows = [
            {"name": name, "map_bytes": size, "gb_per_s": gb_per_s(2 * size, t.q50), "timing": asdict(t)}
            for name, t in timings.items()
        ]
        return {"limit": rows, "states": [{"job": unit, "after": machine.state()}]}

    return session.each([f"{size} bytes" for size in sizes], work)


def _on(copy: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: copy(x)
