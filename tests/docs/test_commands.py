"""The shell commands on the pages are valid, and their flags and subcommands exist."""

import ast
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import pytest
from absl import flags as absl_flags

from tests.docs import run_page
from tests.docs.test_snippets import PAGES, ROOT
from tfloss import cli
from tfloss.app.flags import parse_flags

BASH = re.compile(r"^( *)```bash\n(.*?)^ *```$", re.M | re.S)
# Programs of others. Their flags are theirs.
OTHERS = {".", "cd", "code", "mkdocs", "pytest", "scontrol", "srun", "tensorboard", "pyright"}
OTHERS |= {"exit", "fi", "if", "then", "mkdir", "ruff"}
SEPARATORS = {"&&", "||", ";", "|"}


def blocks(text: str) -> list[str]:
    return [textwrap.dedent(found[2]) for found in BASH.finditer(text)]


def commands(block: str) -> list[list[str]]:
    """The words of each command, without comments and assignments in front."""
    found: list[list[str]] = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if word in SEPARATORS:
                found.append([])
            else:
                found[-1].append(word)
    for words in found:
        while words and re.match(r"\w+=", words[0]):
            del words[0]
    return [words for words in found if words]


def extras() -> set[str]:
    called = {}
    module = ast.parse((ROOT / "setup.py").read_text())
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup":
            called = {word.arg: word.value for word in node.keywords}
    return {key.value for key in called["extras_require"].keys}


DIGITS = "configs/digits.py"


def check(words: list[str], config: str = DIGITS) -> None:
    """Fails if a command names something that doesn't exist.

    Args:
      words: The command.
      config: What stands for the reader's own config.
    """
    program, rest = words[0], [word for word in words[1:] if word != "..."]
    if program == "tfloss":
        cli._parser().parse_args(rest)  # exits with code 2 if something is wrong
    elif program == "pip":
        assert rest[0] == "install"
        for named in re.findall(r"^(?:\.|tfloss)\[(.*)\]$", "\n".join(rest), re.M):
            assert set(named.split(",")) <= extras(), named
    elif re.fullmatch(r"python(3\.\d+)?", program):
        check_python(rest, config)
    else:
        assert program in OTHERS, f"unknown program {program!r}"


def check_python(words: list[str], config: str) -> None:
    module = words[0] == "-m"
    name, arguments = words[int(module)], words[1 + int(module) :]
    if module:
        if name.split(".")[0] not in ("tests", "tfloss"):
            return
        file = ROOT / f"{name.replace('.', '/')}.py"
    else:
        file = ROOT / name
    if name == "train.py" or name.startswith("examples/"):
        assert name == "train.py" or file.exists(), name
        # The reader's own script and config are not here.
        theirs = re.compile(r"^--config=(configs/mine\.py|config\.py|\.\.\.)$")
        given = [theirs.sub(f"--config={config}", word) for word in arguments]
        needed = [f"--config={config}", "--workdir=runs/x"]
        parse_flags([name, *needed, *given], values=absl_flags.FlagValues())
        return
    assert file.exists(), name
    for word in arguments:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in file.read_text(), word


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text)])
def test_the_commands_of_a_page_exist(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = DIGITS
    for _, title, code in run_page.blocks(PAGES[page]):
        if title == "config.py":
            config = str(tmp_path / title)
            Path(config).write_text(code)
    for block in blocks(PAGES[page]):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert not checked.stderr, f"{checked.stderr}\n{block}"
        for words in commands(block):
            try:
                check(words, config)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{shlex.join(words)}: {error!r}") from error


@pytest.mark.parametrize(
    "command",
    [
        "tfloss chekpoints runs/a",
        "tfloss checkpoints runs/a --metrics x",
        "python train.py --config=configs/digits.py --max_stepz=3",
        "python examples/digits/train.py --config=configs/digits.py --config.widht=3",
        "python examples/digit/train.py --config=configs/digits.py",
        "python -m tests.faults.driver --kill 200",
        "pip install -e '.[exmples]'",
        "tfloss2 launch",
    ],
)
def test_a_wrong_command_is_found(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    (words,) = commands(command)
    with pytest.raises((Exception, SystemExit)):
        check(words)


def _known_flags(page: str) -> set[str]:
    """The flags of training scripts, of `tfloss`, and of the scripts that a page names."""
    values = absl_flags.FlagValues()
    parse_flags(["x", "--config=configs/digits.py", "--workdir=x"], values=values)
    known = {f"--{name}" for name in values} | {"--nojit", "--deterministic"}
    sources = [ROOT / "tfloss" / "cli.py", *(ROOT / "tests" / "faults").glob("*.py")]
    sources += [ROOT / name for name in re.findall(r"python (benchmarks/\S+\.py)", PAGES[page])]
    for source in sources:
        known |= set(re.findall(r'"(--[a-z][a-z_-]*)"', source.read_text()))
    return known


# Flags of every command, Slurm, MkDocs, ruff and tf2onnx, which the prose mentions.
OTHER_FLAGS = {
    "--help",
    "--fix",
    "--exclusive",
    "--gpus-per-task",
    "--distribution",
    "--strict",
    "--signature_def",
}


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    prose = re.sub(r"^ *```.*?^ *```", "", PAGES[page], flags=re.M | re.S)
    named = set(re.findall(r"`(--[a-z][a-z_-]*)[^`]*`", prose))
    named = {name for name in named if not name.startswith("--config")}
    assert named <= _known_flags(page) | OTHER_FLAGS
