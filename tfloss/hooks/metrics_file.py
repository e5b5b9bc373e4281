"""Writes what is logged to a file that needs no TensorBoard to be read.

    MetricsFile()                                      # workdir/metrics.jsonl
    # {"step": 100, "time": 1760000000.25, "losses/total": 0.43, "learning_rate": 0.001}
    pandas.read_json("runs/digits/metrics.jsonl", lines=True)

A line for each log; nothing is buffered.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from tfloss.hooks._superseded import keep_until
from tfloss.hooks.base import Hook

_RESERVED = ("step", "time")
_encode = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` would make one for each line


class MetricsFile(Hook):
    """One JSON line for each log that has scalars, appended and on disk at once. Host.

    JSON has no NaN or infinity: they are the strings "nan", "inf" and "-inf", which Python's
    `float` reads. A resumed run appends, and takes out first what is of steps after the checkpoint
    it goes on from, since it repeats these. Fields that tell of time are not repeatable.

    Args:
      path: instead of `workdir/metrics.jsonl`.
      clock: the field `time`, seconds since 1970; injectable for tests.
    """

    chief_only = True
    async_logs = True

    def __init__(self, path: str | Path | None = None, *, clock: Callable[[], float] = time.time):
        self._given = path
        self._clock = clock
        self._file: TextIO | None = None
        self._ended = False
        self._written: tuple[Path, int] | None = None  # where, and up to which step

    @property
    def path(self) -> Path:
        """Where it writes. Raises ValueError without a workdir."""
        if self._given is not None:
            return Path(self._given)
        if self.trainer.workdir is None:
            raise ValueError(
                "MetricsFile has nowhere to write: give the Trainer a workdir, or "
                "MetricsFile(path)."
            )
        return Path(self.trainer.workdir) / "metrics.jsonl"

    def before_train(self) -> None:
        self._ended = False
        written = (self.path, self.trainer.run.start)
        if self._written != written:
            self._written = None  # until all is as it should be
            keep_until(self.path, self.trainer.run.start, _lines)
            self._written = written

    def before_save(self, step: int) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def on_log(self, step, scalars, summaries) -> None:
        if not scalars:
            return
        file = self._file = self._file or _open(self.path)
        file.write(self._line(step, scalars))
        if self._ended:  # a hook after us in the list logs at the end
            self._close()

    def after_train(self) -> None:
        self._ended = True
        if self._written is not None:
            self._written = (self.path, self.trainer.step)
        self._close()

    def _line(self, step: int, scalars: Mapping[str, float]) -> str:
        for name in _RESERVED:
            if name in scalars:
                raise ValueError(
                    f"A scalar is named {name!r}, which MetricsFile needs for itself. Log it "
                    f"under another name, 'my_{name}' say."
                )
        record = {"step": int(step), "time": self._clock()}
        record |= {name: _json_number(value) for name, value in scalars.items()}
        return _encode(record) + "\n"

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _json_number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", buffering=1, encoding="utf-8")


def _lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole lines, and the step of each. A line of somebody else's stays."""
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                step = 0
            yield line, step
