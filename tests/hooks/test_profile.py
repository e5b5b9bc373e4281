import pytest
import tensorflow as tf

from tfloss.hooks import Profile


class Calls(list):
    """Records when the profiler is started and stopped, by the step of a trainer."""

    def patch(self, monkeypatch):
        profiler = tf.profiler.experimental
        monkeypatch.setattr(
            profiler, "start", lambda logdir: self.append(("start", self.trainer.step, logdir))
        )
        monkeypatch.setattr(profiler, "stop", lambda: self.append(("stop", self.trainer.step)))
        return self


@pytest.fixture
def calls(monkeypatch):
    return Calls().patch(monkeypatch)


@pytest.mark.parametrize(
    ("window", "start", "steps", "expected"),
    [
        ((3, 5), 0, 9, (3, 5)),
        ((0, 2), 0, 9, (0, 2)),
        ((3, 5), 4, 9, (4, 5)),  # resumed in the middle
        ((3, 5), 3, 9, (3, 5)),
        ((3, 50), 0, 9, (3, 9)),  # the end closes it
    ],
)
def test_exactly_the_given_steps_are_profiled(
    make_trainer, tmp_path, calls, window, start, steps, expected
):
    calls.trainer = trainer = make_trainer([Profile(*window)], workdir=tmp_path, step=start)
    trainer.train(steps)
    first, last = expected
    assert calls == [("start", first, str(tmp_path / "train")), ("stop", last)]


@pytest.mark.parametrize(("start", "steps"), [(5, 9), (0, 3)])
def test_a_run_that_misses_the_steps_warns(make_trainer, tmp_path, calls, start, steps):
    trainer = make_trainer([Profile(3, 5)], workdir=tmp_path, step=start)
    with pytest.warns(UserWarning, match=f"this run goes from step {start} to {steps}"):
        trainer.train(steps)
    assert calls == []


def test_a_failed_run_closes_its_profile(make_trainer, tmp_path, calls):
    def fail(step):
        if step == 5:
            raise RuntimeError

    calls.trainer = trainer = make_trainer([Profile(3, 9)], workdir=tmp_path, on_step=fail)
    trainer.train(9)
    assert [call[:2] for call in calls] == [("start", 3), ("stop", 4)]


def test_a_profile_is_written_for_tensorboard(make_trainer, tmp_path):
    trainer = make_trainer(
        [Profile.parse("2:4")],
        workdir=tmp_path,
        on_step=lambda step: tf.ones([4, 4]) @ tf.ones([4, 4]),
    )
    trainer.train(6)
    assert trainer.error is None
    (profile,) = (tmp_path / "train/plugins/profile").glob("*/*.xplane.pb")
    assert b"MatMul" in profile.read_bytes()


@pytest.mark.parametrize("text", ["100", "100:", ":110", "a:b", "1:2:3", "-1:3"])
def test_a_malformed_flag_is_named(text):
    with pytest.raises(ValueError, match=f"--profile={text}: expected START:STOP"):
        Profile.parse(text)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="0 <= start < stop"):
        Profile(5, 5)


def test_it_needs_a_path(make_trainer):
    with pytest.raises(ValueError, match="Give the Trainer a workdir"):
        make_trainer([Profile(1, 2)]).begin(5)
