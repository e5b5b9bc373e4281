"""Writes the table of steady speed of docs/performance.md: tfloss against loops by hand.

python benchmarks/speed/steady.py            # measures first: 15 minutes on two cores
python benchmarks/speed/steady.py mlp tasks  # only these again
python benchmarks/speed/steady.py --written  # uses the last measurements

Each workload is trained in the mode that is fastest for it. Both loops train in turns in one
process (`parts.py`). The turns are short, since the speed of a machine changes, but so long that
the checkpoint at the end of each takes about a hundredth of it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import RESULT  # noqa: E402
from parts import PAIRS, in_one_process  # noqa: E402
from whole_runs import machine  # noqa: E402
from write import TITLES, put  # noqa: E402

STEADY = RESULT.with_name("steady.json")
LOOPS = ("mlp", "small", "tasks", "transformer")  # the others are faster as a graph
TURNS = {"transformer": (3, 20.0), "detector": (3, 20.0), "cnn": (5, 10.0)}  # and seconds


def lines(found: dict[str, list]) -> list[str]:
    """The table, in Markdown."""
    rows = [
        "| | mode | turns | by hand, ms | tfloss, ms | speed | CPU time |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    for workload, title in TITLES.items():
        if workload not in found:
            continue
        rounds = found[workload]["rounds"]
        hand, mine = zip(*rounds, strict=True)
        speeds = sorted(a["all"] / b["all"] for a, b in rounds)
        cpu = statistics.median(b["CPU"] / a["CPU"] for a, b in rounds)
        times = [statistics.median(one["all"] for one in ones) for ones in (hand, mine)]
        cells = [f"{value:.3g}" for value in times]
        speed = f"**{statistics.median(speeds):.2f}** ({speeds[0]:.2f} to {speeds[-1]:.2f})"
        mode = "XLA loop" if workload in LOOPS else "graph"
        turns = f"{len(rounds)} of {found[workload]['seconds']:.0f} s"
        rows.append(f"| {title} | {mode} | {turns} | {' | '.join(cells)} | {speed} | {cpu:.2f} |")
    machines = {
        f"{one['machine']['cores']} cores ({one['machine']['cpu']})" for one in found.values()
    }
    return [*rows, "", f"Measured on {' and '.join(sorted(machines))}."]


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*")
    parser.add_argument("--written", action="store_true", help="don't measure")
    flags = parser.parse_args()
    found = json.loads(STEADY.read_text()) if STEADY.exists() else {}
    for workload in [] if flags.written else flags.workloads or TITLES:
        print(workload, flush=True)
        pair = PAIRS[workload in LOOPS]
        turns, seconds = TURNS.get(workload, (8, 6.0))
        rounds = in_one_process(workload, pair, seconds, turns)
        found[workload] = {"machine": machine(), "seconds": seconds, "rounds": rounds}
        STEADY.parent.mkdir(exist_ok=True)
        STEADY.write_text(json.dumps(found, indent=1))
        print("\n".join(lines({workload: found[workload]})), flush=True)
    put("steady", lines(found), "steady.py")


if __name__ == "__main__":
    main()
