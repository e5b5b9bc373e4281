"""Trains every example with several seeds and writes the table of examples/README.md.

    python examples/gallery.py                   # 3 seeds of all examples: about 40 minutes
    python examples/gallery.py digits gan --seeds=1

It writes to runs/gallery and skips runs that are complete, so the same command continues after an
interruption. Delete the directory to train everything again.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "examples" / "README.md"
BEGIN, END = "<!-- gallery: written by gallery.py -->", "<!-- end of gallery -->"


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of the table.

    Attributes:
      folder: The directory of the script, under examples/.
      what: A short description.
      shown: The results to show, `{name: format}`.
      config_name: The name of the config, if it differs from the directory.
      picture: The name of the image under docs/, without suffix.
    """

    folder: str
    what: str
    shown: dict[str, str]
    config_name: str = ""
    picture: str = ""

    @property
    def config(self) -> str:
        """The name of the config."""
        return self.config_name or self.folder

    @property
    def command(self) -> str:
        """The command that trains the example."""
        config = f"--config=configs/{self.config}.py --workdir=runs/{self.config}"
        return f"python examples/{self.folder}/train.py {config}"


PERCENT = "{:.1%}"
EXAMPLES = [
    Example("digits", "A small conv net on 8x8 digits", {"accuracy": PERCENT}, picture="digits"),
    Example(
        "fashion",
        "Plain classification; the model chooses the form of its labels",
        {"accuracy": PERCENT},
        picture="examples/fashion",
    ),
    Example(
        "fashion",
        "A model of `keras.applications`, unchanged, from scratch",
        {"accuracy": PERCENT},
        config_name="fashion_mobilenet",
    ),
    Example(
        "detector",
        "A two-stage detector with masks",
        {"coco/box/AP50": "{:.3f}", "coco/mask/AP50": "{:.3f}", "coco/box/AP": "{:.3f}"},
        picture="examples/detector",
    ),
    Example(
        "detector",
        "The same on tree crowns in aerial images",
        {"coco/box/AP50": "{:.3f}"},
        config_name="tree_crowns",
        picture="examples/tree_crowns",
    ),
    Example(
        "penguins",
        "Five optional tasks with missing labels",
        {"species_accuracy": PERCENT, "sex_accuracy": PERCENT, "mass_error": "{:.0f} g"},
        picture="examples/penguins",
    ),
    Example("gan", "A GAN with R1 penalty", {"frechet": "{:.2f}"}, picture="examples/gan"),
    Example("moco", "Self-supervised learning (MoCo)", {"probe": PERCENT}, picture="examples/moco"),
    Example(
        "vqvae",
        "Images as discrete codes (VQ-VAE)",
        {"squared_error": "{:.5f}"},
        picture="examples/vqvae",
    ),
]


def train(example: Example, seed: int, flags: list[str]) -> dict[str, float]:
    """Trains an example, unless this run is complete.

    Args:
      example: The example.
      seed: The seed of the run.
      flags: Further flags of the script.

    Returns:
      The results, `{"accuracy": ..., "seconds": ...}`.
    """
    workdir = ROOT / "runs" / "gallery" / f"{example.config}_{seed}"
    kept = workdir / "gallery.json"
    if not kept.exists():
        command = [sys.executable, f"examples/{example.folder}/train.py", f"--seed={seed}"]
        command += [f"--config=configs/{example.config}.py", f"--workdir={workdir}", *flags]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        printed = next(s for s in done.stdout.splitlines() if s.startswith(("val/", "test/")))
        words = printed.split()  # val/accuracy 0.998  val/...
        found = {
            name.partition("/")[2]: float(value)
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
        kept.write_text(json.dumps({**found, "seconds": time.monotonic() - begun}))
    return json.loads(kept.read_text())


def line(example: Example, found: list[dict[str, float]]) -> str:
    """Formats the row of an example.

    Args:
      example: The example.
      found: The results of its runs.

    Returns:
      The row in Markdown: the mean of each result, and its minimum and maximum in brackets.
    """
    shown = []
    for name, form in example.shown.items():
        values = [one[name] for one in found]
        text = f"{name} **{form.format(statistics.mean(values))}**"
        if len(values) > 1:
            text += f" ({form.format(min(values))} to {form.format(max(values))})"
        shown.append(text)
    seconds = statistics.mean(one["seconds"] for one in found)
    taken = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
    page = ROOT / "docs" / "examples" / f"{example.folder}.md"
    link = f"../docs/examples/{page.name}" if page.exists() else f"{example.folder}/"
    picture = f"<img src='../docs/{example.picture}.png' width='240'>" if example.picture else ""
    what = f"[{example.config}]({link}): {example.what}"
    return f"| {what} | {picture} | `{example.command}` | {taken} | {'; '.join(shown)} |"


def main() -> None:
    """Trains the examples and rewrites the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("examples", nargs="*", help="names of configs; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data_dir", default="data")
    flags = parser.parse_args()
    if unknown := set(flags.examples) - {example.config for example in EXAMPLES}:
        parser.error(f"no such examples: {sorted(unknown)}")
    rows = {}
    for example in EXAMPLES:
        runs = []
        for seed in range(flags.seeds):
            if not flags.examples or example.config in flags.examples:
                print(f"{example.config}, seed {seed}", flush=True)
                runs.append(train(example, seed, [f"--config.data_dir={flags.data_dir}"]))
        if runs:
            rows[example.config] = line(example, runs)
    text = README.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    for row in old.splitlines():  # other rows stay as they are
        name = row.removeprefix("| [").partition("]")[0]
        if row.startswith("| [") and name not in rows:
            rows[name] = row
    order = [rows[e.config] for e in EXAMPLES if e.config in rows]
    head = "| example | | command | time, 2 CPU cores | result |\n| --- | --- | --- | --- | --- |"
    README.write_text(f"{before}{BEGIN}\n{head}\n" + "\n".join(order) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
