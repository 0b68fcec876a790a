# SPDX-License-Identifier: MIT
"""One measuring step at work: unit after unit, the most valuable first, until all are done or the time is up."""

import gc
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .machine import Machine
from .record import ALL_DONE, DEVICE_LOST, DONE, FAILED, SOME_FAILED, TIME_IS_UP, Found, Line, Record

Unit = TypeVar("Unit")


@dataclass
class Session:
    """Where a step writes to, what it measures on, and when it has to stop."""

    step: str
    record: Record
    machine: Machine
    deadline: float  # of time.monotonic()

    def each(self, units: Iterable[Unit], work: Callable[[Unit], Found]) -> int:
        """Do the work of every unit that no run of these sources has tried, and write down what it finds.

        A unit that fails is written down too, and the next one begins, unless the device is lost to this process.
        """
        failed = False
        for unit in units:
            name = str(unit)
            known = self.record.known.get((self.step, name))
            if known and known.status in (DONE, FAILED) and known.sources == self.record.sources:
                failed |= known.status == FAILED
                continue
            start = time.monotonic()
            if start > self.deadline:
                return TIME_IS_UP
            status, note, found = DONE, "", {}  # type: str, str, Found
            try:
                with self.machine.working():
                    found = work(unit)
            except Exception:
                status, note = FAILED, traceback.format_exc(limit=-3)
            seconds = round(time.monotonic() - start, 2)
            self.record.write(Line(self.step, name, status, seconds, note, found))
            print(f"{name}: {status}, {seconds} s {note}", flush=True)
            if status == FAILED:
                failed = True
                if not self.machine.is_usable():
                    return DEVICE_LOST
            gc.collect()
            torch.compiler.reset()
            self.machine.release()
        return SOME_FAILED if failed else ALL_DONE
