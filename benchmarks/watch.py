"""The cost of `hooks.Watch` at every 100 steps, against the same run without it.

    python benchmarks/watch.py                   # mlp, small and cnn of benchmarks/speed
    python benchmarks/watch.py transformer

Both runs write TensorBoard's curves, and Watch its histograms, too. Calls of 200 steps, which have
two watched ones, are interleaved. It compares the fastest of each, since other processes can only
make a call slower.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from _timing import interleaved

import tfloss
from tfloss.hooks import Every, TensorBoard, Watch

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from workloads import WORKLOADS, Owner

EVERY, CALL, ROUNDS = 100, 200, 15
VARIANTS = {
    "without": None,
    "Watch": {},
    "Watch(histograms=False)": {"histograms": False},
    "Watch, never due": {"every": Every(steps=10**9)},
}


def compare(name: str, jit, directory: Path) -> None:
    """Prints the ratios for one workload and mode.

    Args:
      name: Name of the workload.
      jit: As `Trainer` takes it.
      directory: Where the curves go.
    """
    work, calls = WORKLOADS[name], {}
    for number, (variant, arguments) in enumerate(VARIANTS.items()):
        hooks = [TensorBoard(directory / f"{name}_{jit}_{number}")]
        if arguments is not None:
            hooks.insert(0, Watch(**{"every": Every(steps=EVERY), **arguments}))
        trainer = tfloss.Trainer(
            Owner(work.make(), work.losses),
            work.optimizer(),
            jit=jit,
            hooks=hooks,
            default_hooks=False,
            log_every=EVERY,
        )
        data = work.data().take(64).cache().repeat()
        calls[variant] = lambda t=trainer, d=data: t.train(d, t.step + CALL)
    seconds = interleaved(calls, ROUNDS)
    base = min(seconds["without"])
    print(f"{name}, jit={jit}: {CALL / base:.0f} steps/s without", flush=True)
    for variant in list(VARIANTS)[1:]:
        more = min(seconds[variant]) - base
        print(
            f"  {variant}: {more / base:+.1%}, {1e3 * more / (CALL / EVERY):.1f} ms for each due "
            "step",
            flush=True,
        )


def main() -> None:
    """Runs the benchmark and prints its results."""
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[1:] or ["mlp", "small", "cnn"]:
            for jit in (False, "loop"):
                compare(name, jit, Path(directory))


if __name__ == "__main__":
    main()
