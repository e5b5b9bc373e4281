"""Writes the tables of docs/why.md.

python benchmarks/why/write.py          # about ten minutes on two cores
python benchmarks/why/write.py sizes    # one of: sizes, memory, representation
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "why.md"
TABLES = ("sizes", "memory", "representation")


def main() -> None:
    """Runs the scripts and replaces their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    for name in parser.parse_args().tables or TABLES:
        print(name, flush=True)
        script = [sys.executable, str(HERE / f"{name}.py")]
        done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
        rows = "\n".join(line for line in done.stdout.splitlines() if line.startswith("|"))
        begin, end = f"<!-- written by benchmarks/why/{name}.py -->", f"<!-- end of {name} -->"
        before, rest = PAGE.read_text().split(begin)
        after = rest.split(end)[1]
        PAGE.write_text(f"{before}{begin}\n{rows}\n{end}{after}")


if __name__ == "__main__":
    main()
