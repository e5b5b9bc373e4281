"""The command line of a training script."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf
from absl import flags
from ml_collections import ConfigDict

from tfloss import app
from tfloss.app import config as saved
from tfloss.app.flags import FlagError, Options, define_flags, parse_flags

# ml_collections loads a recipe in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[2]
RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(
        {"steps": 100, "smooth": False, "optimizer": {"name": "adam", "learning_rate": 1e-3}}
    )
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def parse(recipe, tmp_path):
    """Parses these arguments, with a recipe and a workdir, in flags of their own."""

    def run(*arguments: str) -> Options:
        argv = ["train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *arguments]
        return parse_flags(argv, values=flags.FlagValues())

    return run


def test_the_defaults(parse, tmp_path):
    options = parse()

    assert options.config.optimizer.learning_rate == 1e-3
    assert dataclasses.asdict(options) | {"config": None} == {
        "config": None,
        "workdir": tmp_path / "run",
        "mode": "train_and_eval",
        "strategy": "auto",
        "replicas": None,
        "seed": 0,
        "jit": None,
        "profile": None,
        "overfit_batches": None,
        "max_steps": None,
        "deterministic": False,
        "max_minutes": None,
    }


def test_every_flag_has_its_type(parse):
    options = parse(
        "--mode=eval",
        "--strategy=mirrored",
        "--replicas=2",
        "--seed=7",
        "--jit",
        "--profile=100:110",
        "--overfit_batches=1",
        "--max_steps=50",
        "--deterministic",
        "--max_minutes=0.5",
        "--config.optimizer.learning_rate=3e-4",
        "--config.steps=7",
        "--config.smooth",
    )

    assert (options.mode, options.strategy, options.replicas) == ("eval", "mirrored", 2)
    assert (options.seed, options.jit, options.profile) == (7, True, (100, 110))
    assert (options.overfit_batches, options.max_steps) == (1, 50)
    assert (options.deterministic, options.max_minutes) == (True, 0.5)
    assert options.config.to_dict() == {
        "steps": 7,
        "smooth": True,
        "optimizer": {"name": "adam", "learning_rate": 3e-4},
    }


def test_jit_is_a_boolean_flag_that_also_takes_a_mode(parse):
    for argument, value in (
        ("--jit", True),
        ("--nojit", False),
        ("--jit=true", True),
        ("--jit=false", False),
        ("--jit=loop", "loop"),
        ("--jit=auto", "auto"),
    ):
        found = parse(argument).jit
        assert type(found) is type(value) and found == value
    values = flags.FlagValues()
    define_flags(values, ["train.py"])
    for argument in ("--jit=loop", "--jit", "--nojit"):
        values(["train.py", argument])
        assert values["jit"].serialize() == argument


def test_home_is_expanded(recipe):
    argv = ["train.py", f"--config={recipe}", "--workdir=~/runs"]

    assert parse_flags(argv, values=flags.FlagValues()).workdir == Path.home() / "runs"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workdri=x", "Unknown flag --workdri. Did you mean --workdir?"),
        ("--overfit_batch=2", "Unknown flag --overfit_batch. Did you mean --overfit_batches?"),
        ("--zzzzzz", "Unknown flag --zzzzzz. --help lists the flags."),
        (
            "--config.optimizer.learning_rat=1",
            "Unknown config key --config.optimizer.learning_rat. "
            "Did you mean --config.optimizer.learning_rate?",
        ),
        (
            "--config.optimiser.learning_rate=1",
            "Unknown config key --config.optimiser.learning_rate. "
            "Did you mean --config.optimizer.learning_rate?",
        ),
        ("--config.step=1", "Unknown config key --config.step. Did you mean --config.steps?"),
        ("--noconfig.smoth", "Unknown config key --config.smoth. Did you mean --config.smooth?"),
        ("--config.steps=many", "--config.steps=many: invalid literal for int()"),
        ("--config.steps=1.5", "--config.steps=1.5: invalid literal for int()"),
        ("--config.optimizer.learning_rate=x", "could not convert string to float: 'x'"),
        ("--config.steps", "Missing value for flag --config.steps"),
        ("--config.optimizer=sgd", "Failed to parse 'sgd' as a ConfigDict"),
        ("--seed=x", "--seed=x: invalid literal for int()"),
        ("--replicas=0", "--replicas=0: 0 is not a positive integer"),
        ("--max_steps=0", "--max_steps=0: 0 is not a positive integer"),
        ("--max_minutes=0", "--max_minutes=0: 0.0 is not number >= 0.01"),
        ("--strategy=mirorred", "should be one of <auto|one|mirrored|multi_worker|tpu>"),
        ("--mode=evaluate", "should be one of <train|train_and_eval|eval|export>"),
        ("--jit=lop", "--jit=lop: expected loop, auto, true or false"),
        ("--profile=100", "--profile=100: expected two steps START:STOP"),
        ("--profile=110:100", "expected two steps START:STOP, START the lower one, as in 100:110"),
        ("--profile=a:b", "expected two steps START:STOP"),
        ("workdir=x", "Unexpected argument 'workdir=x'. Every option is written --name=value."),
    ],
)
def test_a_wrong_argument_is_named(parse, argument, message):
    with pytest.raises(FlagError) as error:
        parse(argument)

    assert message in str(error.value)


def test_an_unknown_key_far_from_all_lists_them(parse, recipe):
    with pytest.raises(FlagError) as error:
        parse("--config.zzzzzz=1")

    assert str(error.value) == (
        f"Unknown config key --config.zzzzzz. {recipe} has: optimizer, optimizer.learning_rate, "
        "optimizer.name, smooth, steps."
    )


def test_an_unknown_key_of_a_group_lists_those_of_the_group(parse):
    for key, message in (
        ("lr", "config.optimizer has: learning_rate, name."),
        (
            "nam",
            "Did you mean --config.optimizer.name? config.optimizer has: learning_rate, name.",
        ),
    ):
        with pytest.raises(FlagError) as error:
            parse(f"--config.optimizer.{key}=1")

        assert str(error.value) == f"Unknown config key --config.optimizer.{key}. {message}"

    with pytest.raises(
        FlagError, match=r"--config.steps.x. Did you mean --config.steps\? .* has: "
    ):
        parse("--config.steps.x=1")


def test_a_missing_recipe_is_named_with_the_nearest_file(recipe):
    with pytest.raises(FlagError) as error:
        wrong = recipe.with_name("recipes.py")
        parse_flags(["train.py", f"--config={wrong}"], values=flags.FlagValues())

    assert str(error.value) == f"There is no config file '{wrong}'. Did you mean '{recipe}'?"


def test_a_mistake_inside_a_recipe_is_not_hidden(recipe, parse):
    recipe.write_text("def get_config():\n    return [].lenght\n")

    with pytest.raises(AttributeError, match="lenght"):
        parse()


def test_config_and_workdir_are_required(recipe):
    for argv, message in (
        (["--workdir=x"], "Flag --config is required, for instance --config=configs/digits.py."),
        ([f"--config={recipe}"], "Flag --workdir is required, for instance --workdir=runs/digits."),
        (["--workdir=x", "--config.steps=1"], "--config.steps has no recipe to change"),
    ):
        with pytest.raises(FlagError) as error:
            parse_flags(["train.py", *argv], values=flags.FlagValues())
        assert message in str(error.value)


def test_a_script_may_bring_a_recipe_and_flags_of_its_own(recipe):
    values = flags.FlagValues()
    flags.DEFINE_string("teacher", None, "A flag of the script.", flag_values=values)
    argv = ["train.py", "--workdir=x", "--teacher=big", "--config.steps=3"]

    options = parse_flags(argv, config=str(recipe), values=values)

    assert options.config.steps == 3
    assert values.teacher == "big"


def test_flags_are_parsed_afresh_by_every_run(recipe):
    values = flags.FlagValues()
    first = ["train.py", f"--config={recipe}", "--workdir=x", "--seed=3", "--config.steps=3"]
    second = ["train.py", f"--config={recipe}", "--workdir=x"]

    assert parse_flags(first, values=values).seed == 3
    options = parse_flags(second, values=values)

    assert (options.seed, options.config.steps) == (0, 100)


def test_a_flag_that_the_script_defines_too_is_an_error(recipe):
    values = flags.FlagValues()
    flags.DEFINE_integer("seed", 1, "The script's own.", flag_values=values)

    with pytest.raises(flags.DuplicateFlagError, match="seed"):
        parse_flags(["train.py", f"--config={recipe}", "--workdir=x"], values=values)


def test_prepare_seeds_and_saves_the_config(parse, tmp_path, capsys):
    run = app.prepare(parse("--seed=5", "--strategy=mirrored", "--replicas=2"))
    first = tf.random.uniform([]).numpy()
    again = app.prepare(parse("--seed=5", "--mode=eval"))

    assert run.strategy.num_replicas_in_sync == 2
    assert again.strategy.num_replicas_in_sync == 1
    assert run.seed == 5
    assert tf.random.uniform([]).numpy() == first
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
        "steps": 100,
        "smooth": False,
        "optimizer": {"name": "adam", "learning_rate": 0.001},
        "--seed": 5,
        "--strategy": "mirrored",
        "--replicas": 2,
        "--jit": None,
        "--deterministic": False,
        "--overfit_batches": None,
        "--max_steps": None,
    }
    assert os.listdir(tmp_path / "run") == ["config.json"]
    assert capsys.readouterr().out == ""


def test_another_config_in_the_same_workdir_is_reported(parse, tmp_path, capsys):
    app.prepare(parse())
    app.prepare(parse("--config.optimizer.learning_rate=3e-4", "--config.steps=200"))

    file = tmp_path / "run" / "config.json"
    assert capsys.readouterr().out == (
        f"The config differs from {file}; the new one counts:\n"
        "  steps: 100 -> 200\n"
        "  optimizer.learning_rate: 0.001 -> 0.0003\n"
    )
    assert json.loads(file.read_text())["steps"] == 200


def test_other_flags_in_the_same_workdir_are_reported(parse, tmp_path, capsys):
    app.prepare(parse("--max_steps=50", "--strategy=mirrored", "--replicas=2"))
    app.prepare(parse("--seed=3", "--overfit_batches=1", "--strategy=mirrored", "--replicas=4"))

    assert capsys.readouterr().out.splitlines()[1:] == [
        "  --seed: 0 -> 3",
        "  --replicas: 2 -> 4",
        "  --overfit_batches: null -> 1",
        "  --max_steps: 50 -> null",
    ]


def test_evaluation_reports_the_difference_and_keeps_the_config(parse, tmp_path, capsys):
    app.prepare(parse())
    run = app.prepare(parse("--mode=eval", "--config.steps=200"))

    assert "steps: 100 -> 200" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 100
    assert (run.trains, run.evaluates) == (False, True)


@pytest.mark.parametrize("mode", ["eval", "export"])
def test_there_must_be_a_run_to_evaluate_or_export(parse, mode, tmp_path):
    with pytest.raises(ValueError, match=f"--mode={mode} needs a trained run.*{tmp_path}/run"):
        app.prepare(parse(f"--mode={mode}"))


def test_an_unwritable_workdir_is_named(parse, tmp_path):
    (tmp_path / "run").write_text("a file")

    with pytest.raises(ValueError, match=f"Can't write to --workdir={tmp_path}/run: "):
        app.prepare(parse())


def test_a_broken_saved_config_is_named(parse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")

    with pytest.raises(ValueError, match="config.json is not a config that tfloss saved"):
        app.prepare(parse())


def test_differences_are_by_flat_key():
    old = {"a": 1, "b": {"c": [1, 2], "gone": None}, "same": 0.1, "d": {}, "e": 1}
    new = {"a": 1.0, "b": {"c": [1, 3], "come": "x"}, "same": 0.1, "d": {"k": 1}, "e": 1}

    assert saved.differences(old, new) == [
        "a: 1 -> 1.0",
        "b.c: [1, 2] -> [1, 3]",
        "b.gone: null -> absent",
        "d: {} -> absent",
        'b.come: absent -> "x"',
        "d.k: absent -> 1",
    ]


def test_a_config_of_any_values_can_be_saved(tmp_path):
    config = ConfigDict({"shape": (1, 2), "act": len, "path": Path("x")})

    saved.write_config(saved.to_json(config), tmp_path / "new" / "run")

    assert saved.read_config(tmp_path / "new" / "run")["shape"] == [1, 2]
    assert saved.read_config(tmp_path) is None


def _run(parse, *arguments):
    return app.prepare(parse("--mode=train", *arguments))


def test_max_steps_only_shortens(parse):
    assert _run(parse).steps(100) == 100
    assert _run(parse, "--max_steps=30").steps(100) == 30
    assert _run(parse, "--max_steps=300").steps(100) == 100


def test_overfit_repeats_the_first_batches_as_they_came_first(parse):
    drawn = tf.data.Dataset.random(seed=1).batch(2)
    few = _run(parse, "--overfit_batches=3").overfit(drawn)

    batches = [tuple(batch) for batch in few.take(7).as_numpy_iterator()]

    assert batches[:3] == batches[3:6]
    assert batches[6] == batches[0]
    assert len(set(batches)) == 3
    assert _run(parse).overfit(drawn) is drawn


def test_flags_ask_for_hooks(parse):
    profile, limit = _run(parse, "--profile=100:110", "--max_minutes=30").hooks()

    assert (profile.start, profile.stop) == (100, 110)
    assert limit.minutes == 30
    assert _run(parse).hooks() == []


def test_where_lists_what_is_there(parse, tmp_path):
    run = _run(parse)
    workdir = tmp_path / "run"
    assert run.where() == f"config      {workdir}/config.json"
    for name in ("export", "export_step_1000", "export_step_300", "train", "nonfinite"):
        (workdir / name).mkdir()

    assert run.where().splitlines() == [
        f"config      {workdir}/config.json",
        f"export      {workdir}/export",
        f"export      {workdir}/export_step_300",
        f"export      {workdir}/export_step_1000",
        f"nonfinite   {workdir}/nonfinite  (tfloss replay {workdir})",
        f"curves      tensorboard --logdir {workdir}",
    ]


SCRIPT = """
import sys
import types

# What importing the whole of tfloss brings in is not tested here.
package = types.ModuleType("tfloss")
package.__path__ = [sys.argv.pop()]
sys.modules["tfloss"] = package

from tfloss import app

def main(run):
    import tensorflow as tf
    tf.debugging.set_log_device_placement(False)
    print(run.strategy.num_replicas_in_sync, run.config.steps, tf.ones([]).numpy())
    return "not an exit code"

try:
    app.run(main)
finally:
    print("tensorflow" in sys.modules)
"""


def _script(tmp_path, *arguments):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, str(script), *arguments, str(ROOT / "tfloss")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )


def test_a_typo_ends_the_script_before_tensorflow_is_imported(tmp_path):
    done = _script(tmp_path, "--workdri=x")

    assert done.returncode == 2
    assert done.stderr == "train.py: Unknown flag --workdri. Did you mean --workdir?\n"
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_a_script_runs_quietly(recipe, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = _script(tmp_path, f"--config={recipe}", workdir, "--strategy=mirrored", "--replicas=2")

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "2 100 1.0\nTrue\n")


INTERRUPTED = """
import os
import time

import keras
import tensorflow as tf

import tfloss
from tfloss import app

class Slope(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(name="w", shape=())

    def call(self, batch, training=False):
        return tf.reduce_mean((self.w * batch - 1.0) ** 2)

class Tell(tfloss.Hook):
    every = tfloss.Every(steps=3)

    def after_step(self, step):
        print("going", flush=True)
        time.sleep(60 if os.environ.get("SLOW") == "hook" else 0)

    def after_train(self):
        if os.environ.get("SLOW") == "end":
            print("ending", flush=True)
            time.sleep(60)

def main(run):
    data = tf.data.Dataset.from_tensors(tf.ones([4])).repeat()
    trainer = tfloss.Trainer(
        Slope(), keras.optimizers.SGD(0.1), workdir=run.workdir, hooks=[Tell(), *run.hooks()],
        steps_per_call=1,
    )
    trainer.train(data, run.config.steps)

app.run(main)
"""


@pytest.fixture
def interrupted(recipe, tmp_path):
    """Starts the script: `interrupted(steps, *flags, slow=...)` gives the process."""
    script = tmp_path / "train.py"
    script.write_text(INTERRUPTED)

    def start(steps, *flags, slow=""):
        workdir = f"--workdir={tmp_path / 'run'}"
        command = [sys.executable, str(script), f"--config={recipe}", workdir]
        return subprocess.Popen(
            [*command, f"--config.steps={steps}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SLOW": slow},
        )

    return start


def _press(process):
    """Ctrl-C, and what is printed first about it, within a second."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = next(line for line in process.stdout if line != "going\n")
    assert time.monotonic() - began < 1
    assert re.fullmatch(
        r"tfloss: Ctrl-C at step \d+: finishing the step and what is due, then saving a "
        r"checkpoint; Ctrl-C again exits at once.\n",
        line,
    )


@pytest.mark.slow
def test_control_c_ends_a_script_with_a_line_that_says_how_to_go_on(interrupted, tmp_path):
    with interrupted(1000000000) as process:
        assert process.stdout.readline() == "going\n"
        began = time.monotonic()
        _press(process)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 4  # 2, if nothing else is running

    (saved_at,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        f"train.py: interrupted; the newest checkpoint is {saved_at}. "
        "Run the same command to go on from it."
    )
    assert "Traceback" not in err
    step = int(saved_at.name.removeprefix("step_"))
    with interrupted(step + 2) as again:
        out, err = again.communicate(timeout=100)
    assert f"resuming at step {step} from" in out, err


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "sign"), [("hook", "going\n"), ("end", "ending\n")])
def test_a_second_control_c_does_not_wait_for_hooks(interrupted, slow, sign):
    with interrupted(1000000000, slow=slow) as process:
        assert process.stdout.readline() == "going\n"
        _press(process)
        if slow == "end":
            assert next(line for line in process.stdout if line != "going\n") == sign
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 4
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err


@pytest.mark.slow
def test_max_minutes_saves_and_ends_with_a_code_of_its_own(interrupted, tmp_path):
    with interrupted(1000000000, "--max_minutes=0.02") as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 124 and "Traceback" not in err, err
    step = int(re.search(r"0.02 minutes are over at step (\d+): saving", out)[1])
    (saved_at,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved_at.name == f"step_{step:08d}"
    with interrupted(step + 2, "--max_minutes=10") as again:
        out, err = again.communicate(timeout=100)
    assert again.returncode == 0 and f"resuming at step {step} from" in out, err


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        ("train", " before there was a checkpoint in {}; the same command starts again."),
        ("eval", "; run the same command to start again."),
    ],
)
def test_control_c_before_a_checkpoint_says_so(recipe, tmp_path, capsys, mode, left):
    workdir = tmp_path / "run"
    workdir.mkdir()

    def main(run):
        raise KeyboardInterrupt

    argv = ["train.py", f"--config={recipe}", f"--workdir={workdir}", f"--mode={mode}"]
    with pytest.raises(SystemExit) as ended:
        app.run(main, argv=argv)

    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith(f": interrupted{left.format(workdir)}\n")


def test_what_is_not_chatter_stays(capfd):
    from tfloss.app.quiet import _CHATTER, _without

    with _without(_CHATTER):
        os.write(2, b"I0000 00:00 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"E0000 00:00 alloc.cc:1] out of memory\n")
        print("a warning", file=sys.stderr)

    err = capfd.readouterr().err
    assert "port.cc" not in err
    assert "out of memory\n" in err


def test_a_trainer_has_what_the_flags_say_unless_told_otherwise(parse, tmp_path):
    run = _run(parse)
    model, optimizer = tf.keras.Sequential([tf.keras.layers.Dense(1)]), tf.keras.optimizers.SGD()
    trainer = run.trainer(model, optimizer, clip_norm=2.0)
    assert (trainer.workdir, trainer.strategy) == (run.workdir, run.strategy)
    assert run.trainer(model, optimizer, workdir=tmp_path / "other").workdir == tmp_path / "other"


def test_results_are_printed_in_one_line(parse, capsys):
    _run(parse).report({"accuracy": 0.98125, "coco/box/AP": 0.5, "error": 274.4434, "tiny": 1.2e-7})
    printed = capsys.readouterr().out
    assert printed == (
        "test/accuracy 0.98125  test/coco/box/AP 0.5  test/error 274.44  test/tiny 1.2e-07\n"
    )
