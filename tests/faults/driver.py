"""Kills training again and again, and compares what it ends with to a run that nobody disturbed.

    python -m tests.faults.driver --kills 200                  # all kinds of runs, in turn
    python -m tests.faults.driver --kills 20 --kinds shuffle "pipe_*" --seed 1

`script.py` is started, killed with SIGKILL at a random moment (every other time while a checkpoint
or an export is being written, found by watching the directory), started again until it is done;
that again in a new folder until there were as many kills. Then every variable, every line of
metrics.jsonl and every value in the event files and in exports must be those of the undisturbed
run. What tells of time is left out. After each kill an export must be the old or the new one.

A new process that imports TensorFlow takes seconds. So one that has imported it, and has done
nothing else, is forked for each start; `--processes` starts Python each time.
"""

import argparse
import collections
import contextlib
import fnmatch
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults import exports

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

TIMES = ("time", "steps_per_second", "examples_per_second", "input/", "time/")
PATIENCE = 120.0  # seconds for one life
# Seconds between a worker's last sum and its end. Python's own exit takes as long; `os._exit` can
# close the sockets while the other worker still reads its part of the sum.
_FAREWELL = 0.5


class Life:
    """One start of the script: a process, or a worker's each.

    Args:
      kind, workdir: what it trains, where.
      fork: whether to fork this process instead of starting Python anew.
    """

    def __init__(self, kind: str, workdir: Path, fork: bool):
        self.workdir = workdir
        ports = [_free_port() for _ in range(2)] if kind == "workers" else []
        clusters = [
            json.dumps(
                {
                    "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                    "task": {"type": "worker", "index": index},
                }
            )
            for index in range(len(ports))
        ]
        self._log = workdir.with_name(f"{workdir.name}.log").open("a")
        log = self._log.fileno()
        self.pids = [_start(kind, workdir, one, log, fork) for one in clusters or [None]]
        self._codes: dict[int, int] = {}
        self._last_log = self._log.tell()

    def code(self) -> int | None:
        """The exit code when all have ended, the first that isn't 0; else None."""
        for pid in self.pids:
            if pid not in self._codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._codes[pid] = os.waitstatus_to_exitcode(status)
        if len(self._codes) < len(self.pids):
            return None
        return next((code for code in self._codes.values() if code), 0)

    def kill(self, which: int) -> None:
        """Kills one process, then the others of its cluster, as a launcher does."""
        first = self.pids[which % len(self.pids)]
        for pid in [first, *(p for p in self.pids if p != first)]:
            if pid not in self._codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        while self.code() is None:
            time.sleep(0.005)

    def trains(self) -> bool:
        """Whether it has logged something since it was started."""
        path = self.workdir.with_name(f"{self.workdir.name}.log")
        return b"TRAINING" in path.read_bytes()[self._last_log :]

    def close(self) -> None:
        self._log.close()


def _start(kind: str, workdir: Path, cluster: str | None, log: int, fork: bool) -> int:
    environment = {"TF_CONFIG": cluster} if cluster else {}

    def child() -> None:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        if not fork:
            command = [sys.executable, "-m", "tests.faults.script", kind, str(workdir)]
            os.execv(command[0], command)
        from tests.faults import script

        script.main(kind, str(workdir))
        if cluster:
            time.sleep(_FAREWELL)

    return forked(child)


def forked(work: Callable[[], None]) -> int:
    """The number of a process, forked from this one, that does something and ends."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a child must never come back as a second parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(
    kind: str, workdir: Path, kills: int, rng: random.Random, fork: bool
) -> collections.Counter:
    """Trains in a workdir, killed so many times if it takes long enough. Returns the moments.

    Raises RuntimeError, with the end of what it printed, if it fails by itself.
    """
    moments: collections.Counter = collections.Counter()
    lives, killed_exports = 0, exports.KilledExports(workdir)
    while True:
        life = Life(kind, workdir, fork)
        lives += 1
        began = time.monotonic()
        wanted = ("while writing", "between")[lives % 2] if kills else "never"
        wait = rng.uniform(0.0, 1.2)
        trained: float | None = None
        try:
            while (code := life.code()) is None:
                now = time.monotonic()
                if now - began > PATIENCE:
                    life.kill(0)
                    raise RuntimeError(f"{kind}: not done in {PATIENCE} s. {_end(workdir)}")
                if trained is None and life.trains():
                    trained = now
                at_work = trained is not None and now - trained > wait
                exporting = exports.exporting(workdir)
                saving = any((workdir / "checkpoints").glob(".step_*.tfloss"))
                writing = exporting if kind in exporting_kinds() else saving
                early = rng.random() < 0.0002  # while it still imports, builds or restores
                if wanted != "never" and ((at_work and (writing or wanted == "between")) or early):
                    if writing:
                        time.sleep(rng.uniform(0.0, rng.choice([0.004, 1.5 * exporting])))
                    life.kill(rng.randrange(2))
                    killed_exports.check()
                    moments[_moment(writing, exporting, at_work)] += 1
                    kills -= 1
                    break
                time.sleep(0.0005 if wanted == "while writing" else 0.002)
            else:
                if code != 0:
                    raise RuntimeError(f"{kind}: exit code {code}. {_end(workdir)}")
                return moments
        finally:
            life.close()


def exporting_kinds() -> list[str]:
    return importlib.import_module("tests.faults.script").EXPORTING


def _moment(writing: bool, exporting: bool, at_work: bool) -> str:
    if writing:
        return "while exporting" if exporting else "while writing"
    return "between" if at_work else "at the start"


def results(workdir: Path) -> dict:
    """What a run has left: `{"variables": ..., "metrics": ..., "events": ..., "exports": ...}`."""
    import numpy as np
    import tensorflow as tf

    from tfloss.checkpoint import CheckpointDirectory, load_manifest, load_values
    from tfloss.common.logger import logger
    from tfloss.hooks.run_description import DESCRIPTION_TAGS

    directory = CheckpointDirectory(workdir / "checkpoints")
    newest = directory.newest_valid(logger)
    assert newest is not None, f"no checkpoint in {workdir}"
    manifest = load_manifest(newest)
    values = load_values(newest, manifest["variables"])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    events = []
    for path in workdir.glob("*/*tfevents*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            events += [
                (event.step, f"{path.parent.name}/{v.tag}", v.SerializeToString())
                for v in event.summary.value
                if v.tag not in DESCRIPTION_TAGS  # of each call of `train`
            ]
    return {
        "variables": {name: np.asarray(value).tobytes() for name, value in values.items()},
        "hooks": manifest["extra"]["hooks"],
        "steps": directory.steps(),
        "metrics": [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines],
        "events": sorted(
            one for one in events if not one[1].removeprefix("train/Training/").startswith(TIMES)
        ),
        "exports": exports.contents(workdir),
    }


def compared(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs. Found by a child, so that TensorFlow is not used in here."""
    with tempfile.NamedTemporaryFile() as file:

        def child() -> None:
            found = differences(results(whole), results(killed))
            Path(file.name).write_text(json.dumps(found))

        os.waitpid(forked(child), 0)
        return json.loads(file.read() or b'["they could not be compared"]')


def differences(whole: dict, killed: dict) -> list[str]:
    """What differs between two runs' results, in words."""
    found = []
    for name in ("hooks", "steps"):
        if whole[name] != killed[name]:
            found.append(f"{name}: {whole[name]} and {killed[name]}")
    a, b = whole["variables"], killed["variables"]
    found += [f"variable {name}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    a, b = whole["exports"], killed["exports"]
    found += [f"exports: {name}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    found += [f"left over: {name}" for name in b["left over"]]
    for name in ("metrics", "events"):
        if whole[name] != killed[name]:
            pairs = zip(whole[name], killed[name], strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), "one has more")
            counts = f"{len(whole[name])} and {len(killed[name])}"
            found.append(f"{name} ({counts}): {str(first)[:600]}")
    return found


def _end(workdir: Path) -> str:
    return workdir.with_name(f"{workdir.name}.log").read_text()[-3000:]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def check(kinds, kills: int, *, seed: int = 0, fork: bool = True, say=print) -> dict:
    """Runs the kinds with `kills` kills in all. Returns `{kind: [differences]}`."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    shares = [kills // len(kinds) + (i < kills % len(kinds)) for i in range(len(kinds))]
    found = {}
    for kind, share in zip(kinds, shares, strict=True):
        began = time.monotonic()
        whole, killed = folder / kind / "whole", folder / kind / "killed_0"
        whole.parent.mkdir()
        run(kind, whole, 0, rng, fork)
        moments: collections.Counter = collections.Counter()
        found[kind], runs = [], 0
        while moments.total() < share:  # a run has room for a few kills only
            killed = folder / kind / f"killed_{runs}"
            moments += run(kind, killed, share - moments.total(), rng, fork)
            found[kind] += compared(whole, killed)
            runs += 1
        took = time.monotonic() - began
        say(
            f"{kind}: {len(found[kind])} differences after {moments.total()} kills in {runs} runs, "
            f"{dict(moments)}, {took:.0f} s",
            flush=True,
        )
        for line in found[kind]:
            say(f"  {line}", flush=True)
    if not any(found.values()):
        shutil.rmtree(folder)
    else:
        say(f"The runs are in {folder}.")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="in all")
    parser.add_argument("--kinds", nargs="*", default=["*"], help="globs of KINDS of script.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", action="store_true", help="start Python for each life")
    flags = parser.parse_args()
    known = importlib.import_module("tests.faults.script").KINDS  # imports TensorFlow, once for all
    kinds = [kind for kind in known if any(fnmatch.fnmatch(kind, one) for one in flags.kinds)]
    if not kinds:
        parser.error(f"--kinds: none of {', '.join(known)}")
    found = check(kinds, flags.kills, seed=flags.seed, fork=not flags.processes)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
