import dataclasses
import io

import pytest
from rich.console import Console

from tests.toys import NO_DATA
from tfloss.common import activity
from tfloss.hooks import Evaluate, Progress
from tfloss.hooks.progress import shown
from tfloss.trainer.stopwatch import Stopwatch

LOG = {
    "losses/cross_entropy": 0.4,
    "losses/regularization": 0.0321,
    "losses/total": 0.4321,
    "weighted_losses/regularization": 0.01,
    "learning_rate": 0.001,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ticking(clock, secs):
    def on_step(step):
        clock.now += secs

    return on_step


def test_plain_lines_at_most_every_10_seconds_and_at_the_end(make_trainer, clock):
    out = io.StringIO()
    hook = Progress(stream=out, clock=clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 4.0))
    trainer.begin(7)
    trainer.log(1, LOG)  # before the first line, as a trainer that logs step 1 would
    trainer.begin = lambda steps: None
    trainer.train(7)
    losses = "total 0.4321  cross_entropy 0.4  regularization 0.0321"
    speed = "8 examples/s  0.25 steps/s"
    # Steps end after 4, 8, 12, ... seconds: it is due at 12 and, 12 later, at 24.
    assert out.getvalue().splitlines() == [
        f"step 3/7  {losses}  |  {speed}  ETA 0:16",
        f"step 6/7  {losses}  |  {speed}  ETA 0:04",
        f"step 7/7  {losses}  |  {speed}  took 0:28",
    ]


def test_what_the_run_is_is_shown_once_and_again_if_it_changes(make_trainer):
    out = io.StringIO()
    hook = Progress(stream=out)
    hook.trainer = make_trainer([hook])
    for names in ("a", "a", "a, b"):
        hook.headline([["losses", names], ["batch", "4"]])
    once = "  losses  a\n  batch   4\n"
    assert out.getvalue() == once + once.replace("a\n", "a, b\n")


def test_the_first_call_does_not_count_in_the_speed(make_trainer, clock):
    out = io.StringIO()
    trainer = make_trainer([Progress(stream=out, clock=clock)], batch_size=None)
    # Step 1 compiles for 100 s, the others take 1 s.
    trainer.on_step = lambda step: ticking(clock, 100.0 if step == 1 else 1.0)(step)
    trainer.train(61)
    # Lines at 100 s (step 1), then every 10 s. That of 140 s (step 41) looks back to 110 s.
    assert out.getvalue().splitlines() == [
        "step 1/61  |  0.01 steps/s  ETA 1:40:00",
        "step 11/61  |  1 steps/s  ETA 0:50",
        "step 21/61  |  1 steps/s  ETA 0:40",
        "step 31/61  |  1 steps/s  ETA 0:30",
        "step 41/61  |  1 steps/s  ETA 0:20",
        "step 51/61  |  1 steps/s  ETA 0:10",
        "step 61/61  |  1 steps/s  ETA 0:00",
        "step 61/61  |  0.381 steps/s  took 2:40",
    ]


def test_evaluation_results_have_a_line_of_their_own(make_trainer, clock):
    out = io.StringIO()
    hooks = [Evaluate(NO_DATA, {}, name="test"), Progress(stream=out, clock=clock)]
    trainer = make_trainer(hooks, results={2: {"accuracy": 0.98125}})
    trainer.begin(2)
    trainer.log(1, {"val/accuracy": 0.5, "val/losses/total": 2.0, "valid": 1.0, "lr": 0.1})
    trainer.begin = lambda steps: None
    trainer.train(2)
    assert out.getvalue().splitlines()[:2] == [
        "step 1  val/accuracy 0.5  val/losses/total 2",
        "step 2  test/accuracy 0.9812",
    ]


def test_only_8_losses_are_shown_and_nan_is_one_of_them(make_trainer, clock):
    out = io.StringIO()
    trainer = make_trainer([Progress(stream=out, clock=clock)])
    trainer.begin(1)
    names = [*"abcdefghi", "total"]
    trainer.log(1, {f"losses/{name}": float("nan") for name in names})
    trainer.step = 1
    trainer.end()
    shown = "  ".join(f"{name} nan" for name in ["total", *"abcdefg"])
    assert out.getvalue() == f"step 1/1  {shown}  (+2 losses)  |  took 0:00\n"


def test_the_last_line_of_a_failed_run_names_the_error(make_trainer, clock):
    def fail(step):
        clock.now += 1
        if step == 3:
            raise FloatingPointError

    out = io.StringIO()
    trainer = make_trainer([Progress(stream=out, clock=clock)], on_step=fail)
    trainer.train(9)
    assert out.getvalue().endswith("steps/s  took 0:03  ended by FloatingPointError\n")


def test_a_finished_run_prints_nothing(make_trainer, clock):
    out = io.StringIO()
    make_trainer([Progress(stream=out, clock=clock)], step=5).train(5)
    assert out.getvalue() == ""


@pytest.mark.parametrize("batch_size", [32, None])
def test_a_terminal_has_one_live_line_and_results_above_it(make_trainer, clock, batch_size):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=160, color_system=None)
    hook = Progress(console=console, clock=clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 0.5), batch_size=batch_size)
    trainer.begin(4)
    trainer.log(1, {"losses/total": 0.5, "losses/[b]box[/b]": 0.5})
    trainer.begin = lambda steps: None
    trainer.train(2)
    trainer.log(2, {"val/accuracy": 0.5})
    text = out.getvalue()
    examples = "64 examples/s  " if batch_size else ""
    assert f"step 2/4  total 0.5  [b]box[/b] 0.5  |  {examples}2 steps/s" in text
    assert "\x1b[2K" in text  # the line is erased and drawn again
    assert "step 2  val/accuracy 0.5\n" in text
    assert "━" in text
    assert hook._display._progress is None  # removed at the end


@pytest.mark.parametrize(
    ("width", "line"),
    [
        # 16 columns of bar and a space leave 103 of 120
        (
            120,
            "━━━━━━━━━━━━━━━━ step 4/4  total 0.4321  cross_entropy 0.4  regularization 0.0321  |  "
            "2 steps/s  took 0:02",
        ),
        (80, "step 4/4  total 0.4321  cross_entropy 0.4  regularization 0.0321  |  took 0:02"),
        (70, "step 4/4  total 0.4321  cross_entropy 0.4  (+1 loss)  |  took 0:02"),
        (60, "step 4/4  total 0.4321  (+2 losses)  |  took 0:02"),
        (30, "step 4/4  |  took 0:02"),
        (20, "step 4/4  |  took 0…"),
    ],
)
def test_the_line_fits_the_terminal(make_trainer, clock, width, line):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=width, color_system=None)
    trainer = make_trainer([Progress(console=console, clock=clock)], on_step=ticking(clock, 0.5))
    trainer.begin(4)
    trainer.log(1, LOG)
    trainer.begin = lambda steps: None
    trainer.train(4)
    *_, last = out.getvalue().split("\x1b[2K")
    assert last.partition("\n")[0].rstrip() == line
    assert "\x1b[1A" not in out.getvalue()  # never a second line to go up from


def test_the_line_fits_a_terminal_that_becomes_narrower(make_trainer, clock):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=160, color_system=None)

    def on_step(step):
        clock.now += 0.5
        console.width = 160 if step < 3 else 60

    trainer = make_trainer([Progress(console=console, clock=clock)], on_step=on_step)
    trainer.begin(4)
    trainer.log(1, LOG)
    trainer.begin = lambda steps: None
    trainer.train(4)
    *_, last = out.getvalue().split("\x1b[2K")
    assert last.partition("\n")[0].rstrip() == "━━━━━━━━━━━━━━━━ step 4/4  |  took 0:02"


def test_a_terminal_is_redrawn_every_200_ms(make_trainer, clock):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=160, color_system=None)
    hook = Progress(console=console, clock=clock)
    draws = []
    trainer = make_trainer([hook], on_step=ticking(clock, 0.125))
    hook._display.update = lambda step, text: draws.append(step)
    trainer.train(8)
    assert draws == [2, 4, 6, 8, 8]


def test_the_stream_decides_between_the_displays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert type(Progress(stream=Terminal())._display).__name__ == "LiveDisplay"
    assert type(Progress(stream=io.StringIO())._display).__name__ == "PlainDisplay"
    monkeypatch.setenv("TERM", "dumb")
    assert type(Progress(stream=Terminal())._display).__name__ == "PlainDisplay"


def test_the_line_shows_where_the_time_went(make_trainer, clock):
    out = io.StringIO()
    trainer = make_trainer([Progress(seconds=1.0, stream=out, clock=clock)], batch_size=None)
    trainer.stopwatch = Stopwatch(clock)

    def on_step(step):
        clock.now += 2
        trainer.stopwatch.waited(0.5)
        with trainer.stopwatch.during("checkpoint"):
            clock.now += 2

    trainer.on_step = on_step
    trainer.begin(2)
    trainer.log(1, {"input/wait_fraction": 0.125})
    trainer.begin = lambda steps: None
    trainer.train(2)
    assert out.getvalue().splitlines() == [
        "step 1/2  |  0.25 steps/s  input 12%  ETA 0:04",
        "step 2/2  |  0.25 steps/s  input 12%  ETA 0:00",
        "step 2/2  |  0.25 steps/s  input 12%  took 0:08 (input 12%, checkpoint 50%)",
    ]


def _live(clock, width=120):
    out = io.StringIO()
    console = Console(force_terminal=True, file=out, width=width, color_system=None)
    return out, Progress(console=console, clock=clock)


def _drawn(out):
    """What the last drawing of the live line says, without the bar."""
    *_, last = out.getvalue().split("\x1b[2K")
    return last.partition("\n")[0].replace("━", "").replace("╸", "").replace("╺", "").strip()


def test_a_plain_line_has_the_speed_of_the_last_seconds(make_trainer, clock):
    """A mode that is eight times as fast is seen at the next line."""
    out = io.StringIO()
    hook = Progress(seconds=5.0, stream=out, clock=clock)
    trainer = make_trainer([hook], batch_size=None)
    trainer.on_step = lambda step: ticking(clock, 1.0 if step <= 40 else 0.125)(step)
    trainer.train(200)
    lines = out.getvalue().splitlines()
    assert lines[7:9] == [
        "step 40/200  |  1 steps/s  ETA 2:40",
        "step 80/200  |  8 steps/s  ETA 0:15",  # the 5 s after step 40
    ]


def test_the_line_says_what_takes_time_in_place_of_the_remaining_time(make_trainer, clock):
    out, hook = _live(clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 0.5), batch_size=None)
    hook.trainer = trainer
    with shown([hook]):
        with activity.during("building the model"):
            assert _drawn(out) == "building the model"
        trainer.begin(100)
        trainer.step = 0
        for step in range(1, 11):
            trainer.on_step(step)
            trainer.step = step
            hook.after_step(step)
        assert _drawn(out) == "step 10/100  |  2 steps/s  ETA 0:45"
        with activity.during("evaluating"):
            assert _drawn(out) == "step 10/100  |  evaluating"
            clock.now += 63
            hook._display._progress.refresh()
            assert _drawn(out) == "step 10/100  |  evaluating 1:03"
            with activity.during("tracing the training step"):
                assert _drawn(out) == "step 10/100  |  tracing the training step"
        # The evaluation is no part of the speed.
        assert _drawn(out) == "step 10/100  |  2 steps/s  ETA 0:45"
        clock.now += 0.5
        trainer.step = 11
        hook.after_step(11)
        # 5.5 s of steps took 68.5 s in all: 89 more take 44.5 s, and evaluations 12 times as long.
        assert _drawn(out) == "step 11/100  |  2 steps/s  ETA 9:15"
        trainer.end()
    assert _drawn(out).startswith("step 11/100  |  0.161 steps/s  took 1:09")


def test_the_remaining_time_never_goes_stale(make_trainer, clock):
    out, hook = _live(clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 0.5), batch_size=None)
    hook.trainer = trainer
    with shown([hook]):
        trainer.end = lambda: None
        trainer.train(10)
        trainer.run = dataclasses.replace(trainer.run, steps=100)
        hook.after_step(10)
        for seconds, tail in (
            (2.0, "ETA 0:43"),
            (4.0, "no step for 0:06"),
            (60, "no step for 1:06"),
        ):
            clock.now += seconds
            hook._display._progress.refresh()
            assert _drawn(out) == f"step 10/100  |  2 steps/s  {tail}"


def test_a_call_that_compiles_tells_no_speed(make_trainer, clock):
    out, hook = _live(clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 0.5), batch_size=None)
    hook.trainer = trainer
    with shown([hook]):
        trainer.begin(2000)
        with activity.during("compiling the training loop", runs_steps=True):
            clock.now += 30
        trainer.step = 1000
        hook.after_step(1000)
        assert _drawn(out) == "step 1000/2000"
        clock.now += 0.5
        trainer.step = 1001
        hook.after_step(1001)
        assert _drawn(out) == "step 1001/2000  |  2 steps/s  ETA 8:20"
        trainer.end()


def test_nothing_of_a_call_without_steps_stays_on_the_terminal(make_trainer, clock):
    out, hook = _live(clock)
    hook.trainer = make_trainer([hook])
    with shown([hook]), activity.during("restoring the checkpoint"):
        pass
    assert _drawn(out) == ""


def test_a_log_file_has_a_line_for_what_takes_long(make_trainer, clock):
    out = io.StringIO()
    hook = Progress(seconds=100.0, stream=out, clock=clock)
    trainer = make_trainer([hook], on_step=ticking(clock, 0.5), batch_size=None)
    hook.trainer = trainer

    def passes(*times):
        for seconds in times:
            clock.now += seconds
            hook._display.poll()  # as its thread does

    with shown([hook]):
        with activity.during("building the model"):
            passes(4.0, 2.0, 3.0, 2.0)
        passes(60.0)
        trainer.begin(100)
        trainer.log(1, {"losses/total": 0.5})
        trainer.step = 1
        with activity.during("evaluating"):
            passes(4.0)
            with activity.during("tracing"):
                passes(2.0)
            passes(15.0, 30.0)
        for _ in range(20):  # saved again and again, each time quickly
            with activity.during("saving a checkpoint"):
                passes(1.0)
        trainer.end()
        with activity.during("exporting the best model"):
            passes(5.0)
    text = out.getvalue()
    head = "step 1/100  total 0.5  |  "
    assert [line for line in text.splitlines() if "took" not in line] == [
        "building the model 0:06",
        "building the model 0:11",
        f"{head}evaluating 0:21",
        f"{head}evaluating 0:51",
        "exporting the best model 0:05",
    ]
    assert "\r" not in text and "\x1b" not in text
