"""Damages workdirs at random, and looks at what a run makes of them.

    python -m tests.faults.damage --cases 300 --seed 0
    python -m tests.faults.damage --seed 0 --only 17          # one case, with what it printed

A run of 15 steps is copied, one to three of its entries are damaged, and the same script continues
to step 30. Each case must end in one of two ways:

- a right resume: from a checkpoint at least as new as the newest one that was not touched, with the
  variables, logs and events of a run that nobody disturbed;
- a refusal before the first step: an error of tfloss whose message names a path in the workdir.

No file of somebody else may change, no checkpoint may be lost, and nothing may hang. The cases run
in forked processes, without root's right to ignore permissions. Many run in one process, where
another model costs little.
"""

import argparse
import collections
import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.driver import forked

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

SAVED, LAST, EVERY = 15, 30, 5
PATIENCE = 120.0  # seconds for a case, on a busy machine
TIMES = ("time", "steps_per_second", "examples_per_second", "input/", "time/")
PRECIOUS = "A file of somebody, for which there is no copy.\n"


# The run


def train(workdir: Path, steps: int) -> list[int]:
    """Trains to a step, as a script does. Returns the steps that this process trained."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfloss
    from tfloss import hooks
    from tfloss.data import Source

    trained: list[int] = []

    class Count(hooks.Hook):
        every = hooks.Every(steps=1)

        def after_step(self, step: int) -> None:
            trained.append(step)

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.w = self.add_weight(name="w", shape=(3,), initializer="ones")

        def call(self, batch, training=False):
            y = tf.linalg.matvec(batch["x"], self.w)
            return {"error": tf.reduce_mean((y - batch["y"]) ** 2)} if training else {"y": y}

    class Distance:
        """A metric that gets better at every evaluation."""

        mode = "min"

        def reset(self) -> None: ...

        def update(self, batch, predictions) -> None:
            self.value = float(np.mean((predictions["y"] - batch["y"]) ** 2))

        def result(self) -> float:
            return self.value

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("f")
    arrays = {"x": x, "y": x @ np.array([1.0, -2.0, 3.0], "f")}
    trainer = tfloss.Trainer(
        Net(),
        keras.optimizers.Adam(0.1),
        workdir=workdir,
        seed=1,
        log_every=1,
        hooks=[
            Count(),
            hooks.Evaluate(
                tf.data.Dataset.from_tensor_slices(arrays).batch(32),
                {"distance": Distance()},
                every=hooks.Every(steps=EVERY),
            ),
            hooks.ExportBest("val/distance"),
            hooks.SaveCheckpoint(hooks.Every(steps=EVERY), keep_last=None),
        ],
    )
    try:
        trainer.train(Source(arrays, batch_size=8, seed=3), steps)
    except BaseException as error:
        error.trained = trained  # type: ignore[attr-defined]
        raise
    return trained


@functools.cache
def whole_results(folder: Path) -> dict[str, Any]:
    """What the run has left that nobody disturbed."""
    return results(folder / "whole")


def results(workdir: Path) -> dict[str, Any]:
    """What a run has left, in values that can be compared."""
    import numpy as np
    import tensorflow as tf

    from tfloss.checkpoint import CheckpointDirectory, load_manifest, load_values

    path = CheckpointDirectory(workdir / "checkpoints").at(LAST)
    values = load_values(path, load_manifest(path)["variables"])
    events = []
    files = sorted((workdir / "train").glob("events*tfevents*"))
    for file in filter(Path.is_file, files):
        with contextlib.suppress(tf.errors.OpError, OSError):
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                events += [
                    [event.step, v.tag, v.SerializeToString().hex()]
                    for v in event.summary.value
                    if not v.tag.removeprefix("Training/").startswith(TIMES)
                    and v.tag not in ("recipe", "command")  # of each call of `train`
                ]
    lines = []
    for line in (workdir / "metrics.jsonl").read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            lines.append({k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)})
    return {
        "variables": {name: np.asarray(value).tobytes().hex() for name, value in values.items()},
        "metrics": lines,
        "events": sorted(events),
        "best": json.loads((workdir / "export.best.json").read_text()),
    }


# Damages


class Damage:
    """Damages entries of one workdir.

    Args:
      rng: Decides everything.
      workdir: The directory.
      outside: A directory with files of somebody else.
    """

    def __init__(self, rng: random.Random, workdir: Path, outside: Path):
        self.rng, self.workdir, self.outside = rng, workdir, outside
        self.done: list[str] = []
        self._modes: list[tuple[Path, int]] = []

    def one(self) -> None:
        """Does one damage, and notes it in `done`."""
        kinds = [
            self.flip, self.flip, self.truncate, self.empty, self.delete, self.directory,
            self.fifo, self.link, self.link, self.mode, self.mode, self.huge, self.deep,
            self.garbage, self.swap, self.append, self.extra, self.extra,
        ]  # fmt: skip
        kind = self.rng.choice(kinds)
        names = kind()
        self.done.append(f"{kind.__name__} {names}")

    def finish(self) -> None:
        """Sets the permissions, after which nothing could be damaged any more."""
        for path, mode in self._modes:
            with contextlib.suppress(OSError):
                path.chmod(mode)

    def _entries(self, *, files: bool = False) -> list[Path]:
        """Everything that the run has made; files of somebody else are left alone."""
        found = [
            path
            for path in sorted(self.workdir.rglob("*"))
            if "mine" not in path.name and "mine" not in path.parent.name
        ]
        if files:
            return [path for path in found if path.is_file() and not path.is_symlink()]
        top = [path for path in found if path.parent == self.workdir]
        return found + 2 * top

    def _file(self) -> Path:
        return self.rng.choice(self._entries(files=True))

    def _entry(self) -> Path:
        return self.rng.choice(self._entries())

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.workdir.parent))

    def flip(self) -> str:
        path = self._file()
        content = bytearray(path.read_bytes())
        for _ in range(self.rng.randint(1, 8)):
            if content:
                content[self.rng.randrange(len(content))] ^= self.rng.randint(1, 255)
        path.write_bytes(content)
        return self._name(path)

    def truncate(self) -> str:
        path = self._file()
        os.truncate(path, self.rng.randrange(path.stat().st_size + 1))
        return self._name(path)

    def empty(self) -> str:
        path = self._file()
        os.truncate(path, 0)
        return self._name(path)

    def delete(self) -> str:
        return self._name(_remove(self._entry()))

    def directory(self) -> str:
        path = _remove(self._file())
        path.mkdir()
        (path / "mine.txt").write_text(PRECIOUS)
        return self._name(path)

    def fifo(self) -> str:
        path = _remove(self._entry())
        os.mkfifo(path)
        return self._name(path)

    def link(self) -> str:
        path = self.rng.choice([*self._entries(), self.workdir])
        targets = ["/nowhere/at/all", self.outside / "file.txt", self.outside, path.name]
        targets += ["/dev/zero", "/dev/full", self.outside / "new.txt"]
        target = self.rng.choice(targets)
        if path == self.workdir:
            target = "/nowhere/at/all"
        _remove(path)
        path.symlink_to(target)
        return f"{self._name(path)} -> {target}"

    def mode(self) -> str:
        path = self.rng.choice([*self._entries(), self.workdir])
        mode = self.rng.choice([0o000, 0o400, 0o444, 0o500, 0o200, 0o100])
        self._modes.append((path, mode))
        return f"{self._name(path)} {mode:o}"

    def huge(self) -> str:
        path = self._file()
        os.truncate(path, 2**40)
        return self._name(path)

    def deep(self) -> str:
        path = self._file()
        depth = self.rng.choice([150, 900, 100_000])
        text = self.rng.choice(['{"step": %s}\n', "%s"]) % ("[" * depth + "]" * depth)
        path.write_text(text)
        return self._name(path)

    def garbage(self) -> str:
        path = self._file()
        path.write_bytes(self.rng.choice([self.rng.randbytes(300), b"[]", b"3", b'"x"', b"{}"]))
        return self._name(path)

    def swap(self) -> str:
        one, other = self._file(), self._file()
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)
        return f"{self._name(one)} {self._name(other)}"

    def append(self) -> str:
        path = self._file()
        with path.open("ab") as file:
            file.write(self.rng.choice([b"\n", b"{", bytes(50), self.rng.randbytes(40)]))
        return self._name(path)

    def extra(self) -> str:
        """An entry that a run doesn't have, in the way of one that it will make."""
        names = [
            "checkpoints/step_00000020", "checkpoints/step_00000030", "checkpoints/.partial_20",
            "checkpoints/.partial_deleted_5", "checkpoints/.replaced_00000015",
            "checkpoints/damaged_00000015", "checkpoints/step_99999999", "checkpoints/step_x",
            "nonfinite", "engine.json", "config.json", "export.partial", "export.old",
            "superseded.metrics.jsonl", ".metrics.jsonl.partial", "train/notes.tfevents",
            "train/events.out.tfevents.0000000000.host.1.0.v2",
        ]  # fmt: skip
        path = self.workdir / self.rng.choice(names)
        if os.path.lexists(path) or not path.parent.is_dir():
            return "nothing"
        kinds: dict[str, Callable[[], object]] = {
            "text": lambda: path.write_text(PRECIOUS),
            "directory": path.mkdir,
            "FIFO": lambda: os.mkfifo(path),
            "link": lambda: path.symlink_to(self.outside / "file.txt"),
            "link to a directory": lambda: path.symlink_to(self.outside),
            "dangling link": lambda: path.symlink_to(self.outside / "new.txt"),
        }
        kind = self.rng.choice(list(kinds))
        kinds[kind]()
        return f"{self._name(path)} {kind}"


def _remove(path: Path) -> Path:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return path


def contents(folder: Path) -> dict[str, str]:
    """`{path: SHA-256}` of the files in a folder; links and other entries by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"-> {os.readlink(path)}"
        elif stat.S_ISREG(mode) and path.lstat().st_size < 2**30:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not stat.S_ISDIR(mode):
            found[name] = f"mode {stat.S_IFMT(mode):o}"
    return found


# A case


def case(folder: Path, seed: int, number: int) -> dict[str, Any]:
    """Runs one case in this process. Returns how it ended, and what is wrong with that."""
    from tfloss.errors import TflossError

    rng = random.Random(f"{seed} {number}")
    place = folder / f"case_{number}"
    workdir, outside = place / "run", place / "outside"
    shutil.copytree(folder / "template", workdir, symlinks=True)
    outside.mkdir()
    for path in (outside / "file.txt", workdir / "mine.txt", workdir / "train" / "mine.txt"):
        path.write_text(PRECIOUS)
    damage = Damage(rng, workdir, outside)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        damage.one()
    before = contents(place)
    damage.finish()
    found: dict[str, Any] = {"case": number, "damage": damage.done, "wrong": []}
    output = place / "output.txt"
    try:
        with output.open("w") as file, contextlib.redirect_stderr(file):
            trained = train(workdir, LAST)
        found["end"] = "resumed"
    except Exception as error:  # noqa: BLE001 - it is judged
        trained = getattr(error, "trained", [])
        found["end"] = f"{type(error).__name__}: {error}"
        if not isinstance(error, TflossError):
            found["wrong"].append("an error that tfloss didn't mean")
            found["end"] += "".join(traceback.format_exception(error)[-6:])
        if trained:
            found["wrong"].append(f"it failed after steps {trained}")
        if str(place) not in str(error):
            found["wrong"].append("the message names no path")
    for path, _ in damage._modes:
        with contextlib.suppress(OSError):
            path.chmod(0o700)
    _make_readable(place)
    found["wrong"] += list(losses(before, contents(place)))
    if found["end"] == "resumed":
        found["first"] = trained[0] if trained else None
        try:
            found["wrong"] += list(differences(folder, workdir, before, trained))
        except Exception as error:  # noqa: BLE001 - a file that should be there is not
            found["wrong"].append(f"what it left can't be read: {error!r}")
    if not found["wrong"]:
        shutil.rmtree(place)
    else:
        found["output"] = output.read_text()[-2000:]
    return found


def _make_readable(place: Path) -> None:
    """Gives all permissions back, so that everything can be looked at."""
    for path in [place, *place.rglob("*")]:
        with contextlib.suppress(OSError):
            if not path.is_symlink():
                path.chmod(0o700)


def losses(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Files of somebody else that changed, and files of checkpoints that are gone."""
    precious = hashlib.sha256(PRECIOUS.encode()).hexdigest()
    for name, what in before.items():
        if name.startswith("outside") and after.get(name) != what:
            yield f"{name} changed"
        elsewhere = name.startswith("run/checkpoints")  # a corrupt checkpoint may be renamed
        if "mine" in name and not elsewhere and after.get(name) != what:
            yield f"{name} changed"
    if sum(v == precious for v in after.values()) < sum(v == precious for v in before.values()):
        yield "a file of somebody is lost"
    linked = {v.rpartition("/")[2] for v in before.values() if v.startswith("->")}
    new = [name for name in after if name.startswith("outside") and name not in before]
    if new and "outside" not in linked:  # a directory of the run may be a link to another disk
        yield f"{new} were written outside"
    kept = collections.Counter(v for k, v in after.items() if k.startswith("run/"))
    for name, what in before.items():
        parts = name.split("/")
        if parts[1:2] == ["checkpoints"] and parts[2:3] and parts[2].startswith(("step_", "damag")):
            if not kept[what]:
                yield f"{name} is gone"
            kept[what] -= 1


def differences(
    folder: Path, workdir: Path, before: dict[str, str], trained: list[int]
) -> Iterator[str]:
    """What is not as in the run that nobody disturbed."""
    template = contents(folder / "template")
    start = trained[0] - 1 if trained else LAST
    intact = []
    for step in range(EVERY, SAVED + 1, EVERY):
        prefix = f"checkpoints/step_{step:08d}/"
        wanted = {k: v for k, v in template.items() if k.startswith(prefix)}
        if {k: v for k, v in before.items() if k.startswith(f"run/{prefix}")} == {
            f"run/{k}": v for k, v in wanted.items()
        }:
            intact.append(step)
    left = {name.split("/")[2] for name in before if name.startswith("run/checkpoints/step_0")}
    if start < max(intact, default=0) and start not in (0, *range(EVERY, SAVED, EVERY)):
        yield f"it resumed at {start}"
    if start == 0 and left:
        yield f"it began again, although there are {sorted(left)}"
    if trained != list(range(start + 1, LAST + 1)):
        yield f"it trained {trained}"
    whole, now = whole_results(folder), results(workdir)
    if whole["variables"] != now["variables"]:
        yield "the variables differ"
    new = [line for line in whole["metrics"] if line["step"] > start]
    if now["metrics"][len(now["metrics"]) - len(new) :] != new:
        yield f"metrics: {now['metrics'][-len(new) :][:2]}, not {new[:2]}"
    if before.get("run/metrics.jsonl") == template["metrics.jsonl"]:
        if now["metrics"] != whole["metrics"]:
            yield f"{len(now['metrics'])} lines of metrics, not {len(whole['metrics'])}"
    old = {k: v for k, v in template.items() if k.startswith("train/")}
    events = [event for event in whole["events"] if event[0] > start]
    if [event for event in now["events"] if event[0] > start and event[0] <= LAST] != events:
        touched = {f"run/{k}": v for k, v in old.items()} != {
            k: v for k, v in before.items() if k.startswith("run/train/") and "mine" not in k
        }
        if not touched:
            yield "the events differ"
    best = [{k: one["best"][k] for k in ("metric", "value", "step")} for one in (whole, now)]
    if best[0] != best[1] or not (workdir / "export").exists():
        yield f"best: {now['best']}"


# Many cases


def prepare(folder: Path) -> None:
    """Makes the run that is damaged, and the one that nobody disturbs."""
    from tfloss.app.config import write_config

    for name, steps in (("template", SAVED), ("whole", LAST)):
        write_config({"steps": LAST, "nested": {"rate": 0.1}}, folder / name)
        train(folder / name, steps)
    (folder / "template" / "engine.json").write_text(
        json.dumps({"mode": "graph", "steps_per_second": {"graph": 1.0}, "circumstances": {}})
    )


def _child(work: Callable[[], None]) -> int:
    def obeying() -> None:
        _obey_permissions()
        work()

    return forked(obeying)


def _obey_permissions() -> None:
    """Takes from root the right to open files whatever their permissions are."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, sets)


def run(numbers: list[int], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs cases in a forked process. A case that hangs ends the process, and another goes on."""
    waiting = list(numbers)
    while waiting:
        reads, writes = os.pipe()

        def work(numbers=tuple(waiting), writes=writes) -> None:
            for number in numbers:
                text = json.dumps(case(folder, seed, number)) + "\n"
                os.write(writes, text.encode())

        pid = _child(work)
        os.close(writes)
        buffer = b""
        while waiting:
            ready, _, _ = select.select([reads], [], [], PATIENCE)
            data = os.read(reads, 65536) if ready else b""
            if not data:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                what = "it hangs" if not ready else "the process died"
                yield {"case": waiting.pop(0), "damage": [], "end": what, "wrong": [what]}
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                waiting.pop(0)
                yield json.loads(line)
        os.close(reads)
        os.waitpid(pid, 0)


def check(cases: list[int], seed: int) -> list[dict[str, Any]]:
    """Runs the cases. Returns those that ended as none may; their directories are kept."""
    folder = Path(tempfile.mkdtemp(prefix="damage_"))
    _, status = os.waitpid(_child(lambda: prepare(folder)), 0)
    if status:
        raise RuntimeError("The run that is to be damaged failed; see above.")
    bad, ends, began = [], collections.Counter(), time.monotonic()
    for found in run(cases, seed, folder):
        ends[found["end"].split(":")[0]] += 1
        if found["wrong"]:
            bad.append(found)
            print(json.dumps(found, indent=1), flush=True)
        elif len(cases) == 1:
            print(json.dumps(found, indent=1), flush=True)
    took = time.monotonic() - began
    print(f"{len(cases)} damages: {dict(ends)}; {len(bad)} ended wrongly; {took:.0f} s", flush=True)
    if bad:
        print(f"They are in {folder}.")
    else:
        shutil.rmtree(folder)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of the cases")
    flags = parser.parse_args()
    importlib.import_module("tfloss.trainer.trainer")  # TensorFlow, once for all

    return int(bool(check(flags.only or list(range(flags.cases)), flags.seed)))


if __name__ == "__main__":
    sys.exit(main())
