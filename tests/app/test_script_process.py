"""How a script of another process ended."""

import sys

from tfloss.app.script_process import NOT_STARTED, print_error, run_script


def test_variables_directory_and_exit_code(tmp_path, capfd):
    show = "import os; print(os.environ['MINE'], os.getcwd()); raise SystemExit(3)"
    code, words = run_script([sys.executable, "-c", show], {"MINE": "7"}, tmp_path)
    assert (code, words) == (3, "ended with exit code 3")
    assert capfd.readouterr().out == f"7 {tmp_path.resolve()}\n"


def test_a_command_that_is_not_there(capsys):
    code, words = run_script(["/no/such/program"], {})
    assert code == NOT_STARTED and words.startswith("could not be started ([Errno 2]")
    print_error("inspect", f"the command {words}.")
    assert capsys.readouterr().err.startswith("tfloss inspect: the command could not be started")
