"""Runs a training script as far as `trainer.train(...)`, which then looks at the run. Host code.

    $ tfloss inspect -- python train.py --config=configs/digits.py --workdir=runs/digits
    $ tfloss inspect --replicas=2 -- python train.py ...

The script starts TensorFlow itself; this process doesn't need it.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfloss.app.script_process import print_error, run_script
from tfloss.common.command_variables import INSPECT_VARIABLE, REPLICAS_VARIABLE
from tfloss.common.replacement import replace_file

_STARTER = "tfloss.app.script_on_replicas"


def main(
    command: Sequence[str],
    *,
    replicas: int | None = None,
    dry_run: bool = False,
    report: Path | None = None,
    html: Path | None = None,
) -> int:
    """Runs the command of a training script, whose first call of `train` reports and ends it.

    Args:
      command: `python train.py ...`, or another command that runs a script.
      replicas: The number of logical CPU devices to compare with one. The command must then start
        with `python`.
      dry_run: Whether to evaluate one batch, too.
      report: File to write the report to, as JSON.
      html: File to write the report to, as an HTML page.

    Returns:
      Exit code: 0 if there is a report.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "report.json"
        asked: dict[str, Any] = {"dry_run": dry_run, "report": str(written)}
        asked["html"] = None if html is None else str(html.absolute())
        variables: dict[str, str] = {}
        if replicas is not None:
            asked["compare"] = True
            variables |= {REPLICAS_VARIABLE: str(replicas), "CUDA_VISIBLE_DEVICES": "-1"}
            if not Path(command[0]).name.startswith("python") or len(command) < 2:
                print_error(
                    "inspect",
                    "--replicas starts the script itself, on logical devices. Write the command as "
                    "python train.py ..., or python -m module ...",
                )
                return 2
            command = [command[0], "-m", _STARTER, *command[1:]]
        variables[INSPECT_VARIABLE] = json.dumps(asked)
        code, ending = run_script(command, variables)
        if not written.exists():
            print_error(
                "inspect",
                f"no report: the command {ending}, and no trainer.train(...) in it was reached.",
            )
            return code or 1
        if report is not None:
            replace_file(report, written.read_bytes())
    return code
