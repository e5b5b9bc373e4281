"""Watch: its numbers by hand and against a plain loop, in all modes, and what it leaves alone."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.balancing.two_heads import BATCH, RATE, Plain, TwoHeads, dataset
from tests.toys import rows
from tfloss.balancing import PCGrad
from tfloss.hooks import Every, Hook, Watch
from tfloss.step.watching import Watching

SLOW = pytest.mark.slow


class Two(keras.Model):
    """a = 3 u x, b = (v - u) x."""

    def __init__(self):
        super().__init__(name="two")
        self.w = self.add_weight(name="w", shape=[2], initializer="ones")

    def call(self, batch, training=False):
        x = tf.reduce_mean(batch["x"])
        return {"a": 3.0 * self.w[0] * x, "b": (self.w[1] - self.w[0]) * x}


def train(watch, steps, model=TwoHeads, data=None, strategy=None, workdir=None, **options):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        made = model()
        optimizer = options.pop("optimizer", lambda model: keras.optimizers.SGD(RATE))(made)
    trainer = tfloss.Trainer(
        made,
        optimizer,
        strategy=strategy,
        workdir=workdir,
        hooks=[watch] if isinstance(watch, Hook) else watch,
        default_hooks=workdir is not None,
        **{"jit": False, **options},
    )
    trainer.train(dataset() if data is None else data, steps)
    return trainer


def test_two_losses_by_hand():
    """The gradients (3, 0) and (-1, 1) sum to (2, 1), which SGD multiplies by -0.2."""
    watch = Watch(Every(steps=1))
    train(watch, 1, Two, rows([1.0, 1.0], 2))
    table = watch.table
    expected = 5**0.5, RATE * 5**0.5, 2**0.5
    assert table.norms["two/w"] == pytest.approx(expected)
    assert table.ratios["two/w"] == pytest.approx(RATE * 5**0.5 / 2**0.5)
    assert table.loss_norms == pytest.approx({"a": 3.0, "b": 2**0.5})
    assert table.cosines["a", "b"] == pytest.approx(-3.0 / (3.0 * 2**0.5))
    assert table.shares == pytest.approx({"a": 6 / 5, "b": -1 / 5})


HOW = [(False, 1, 1), (False, 2, 1)]
HOW += [pytest.param(*how, marks=SLOW) for how in ((True, 2, 1), ("loop", 1, 1), (False, 2, 2))]


@pytest.mark.parametrize(("jit", "count", "accumulate"), HOW)
def test_numbers_are_those_of_a_plain_loop(jit, count, accumulate, replicas):
    """At the third of three steps, which is also logged."""
    before = {}
    weights = {"c": 0.5}

    class Keep(Hook):
        every = Every(steps=1)

        def before_train(self):
            before[0] = self.trainer.model.get_weights()

        def after_step(self, step):
            before[step] = self.trainer.model.get_weights()

    watch = Watch(Every(steps=3))
    train(
        [watch, Keep()],
        3,
        data=dataset(BATCH // accumulate),
        strategy=replicas(count),
        jit=jit,
        accumulate=accumulate,
        loss_weights=weights,
        log_every=3,
    )
    model = Plain(before[2])
    shared = [v.value for v in model.trunk.trainable_variables]
    values = [v.value for v in model.variables]
    with tf.GradientTape(persistent=True) as tape:
        losses = {k: weights.get(k, 1.0) * v for k, v in model.losses(2).items()}
        total = tf.add_n([*losses.values()])
    gradients = tape.gradient(total, values)
    for found, gradient, start, end in zip(
        watch.table.norms.values(), gradients, before[2], before[3], strict=True
    ):
        norm, moved = float(tf.norm(gradient)), np.linalg.norm(end - start)
        assert found == pytest.approx((norm, RATE * norm, np.linalg.norm(start)), rel=2e-4)
        assert found[1] == pytest.approx(moved, rel=2e-4)
    flat = {
        name: np.concatenate([g.numpy().ravel() for g in tape.gradient(loss, shared)])
        for name, loss in losses.items()
    }
    table, whole = watch.table, sum(flat.values())
    for one, gradient in flat.items():
        assert table.loss_norms[one] == pytest.approx(np.linalg.norm(gradient), rel=2e-4)
        assert table.shares[one] == pytest.approx(gradient @ whole / (whole @ whole), abs=1e-4)
        for other, second in flat.items():
            cosine = gradient @ second / np.linalg.norm(gradient) / np.linalg.norm(second)
            assert table.cosines[one, other] == pytest.approx(cosine, abs=1e-4)


def test_training_and_its_logs_are_those_without_it(tmp_path):
    """The bits of weights and curves, where watched and logged steps alternate."""
    found = []
    for name, hooks in (("without", []), ("with", [Watch(Every(steps=3))])):
        trainer = train(hooks, 8, workdir=tmp_path / name, log_every=2)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logs: dict = {}
        for line in map(json.loads, lines):
            kept = {k: v for k, v in line.items() if k.startswith("losses/")}
            logs.setdefault(line["step"], {}).update(kept)
        found.append((trainer.model.get_weights(), {k: v for k, v in logs.items() if v}))
        watched = {line["step"] for line in map(json.loads, lines) if "watch/share/b" in line}
        assert watched == ({3, 6} if hooks else set())
    (weights, logs), (weights2, logs2) = found
    assert logs == logs2
    for one, other in zip(weights, weights2, strict=True):
        np.testing.assert_array_equal(one, other)
    text = (tmp_path / "with" / "watch.txt").read_text()
    assert text.startswith("Step 6: norms") and "net/trunk/dense/kernel" in text
    assert (tmp_path / "with" / "watch.png").read_bytes().startswith(b"\x89PNG")


@SLOW
def test_groups_that_are_not_due_have_no_update():
    def groups(model):
        return {
            "trunk": tfloss.Group(keras.optimizers.SGD(RATE), model.trunk, every=2),
            "rest": (keras.optimizers.SGD(RATE), [model.a, model.b]),
        }

    for steps, due in ((2, False), (3, True)):  # the trunk is due at the first and the third
        watch = Watch(Every(steps=steps))
        train(watch, steps, optimizer=groups)
        gradient, update, weight = watch.table.norms["net/trunk/dense/kernel"]
        assert (gradient > 0, update > 0, weight > 0) == (due, due, True)
        assert watch.table.norms["net/a/kernel"][1] > 0
        assert bool(watch.table.losses) == due


class TwoPasses(tfloss.TrainStep):
    """The second pass alone has several losses."""

    def step(self, batch):
        first = self.minimize(lambda b: {"first": tf.reduce_mean(self.model.w**2)}, batch)
        return {**first, **self.minimize(self.forward, batch)}


def test_several_minimize_calls_and_a_balancer():
    """The first call moves w to (0.8, 0.8); PCGrad makes (1.5, 1.5) of (3, 0) and (-1, 1)."""
    watch = Watch(Every(steps=1))
    train(watch, 1, Two, rows([1.0], 1), train_step=TwoPasses, loss_weights=PCGrad(["a", "b"]))
    gradient, update, weight = watch.table.norms["two/w"]
    # (3, 0) + (-1, 1) * 3/2 = (3/2, 3/2); (-1, 1) + (3, 0) / 3 = (0, 1).
    assert gradient == pytest.approx((1.5**2 + 2.5**2) ** 0.5)
    assert update == pytest.approx(RATE * gradient)
    assert weight == pytest.approx(0.8 * 2**0.5)
    assert watch.table.loss_norms == pytest.approx({"a": 3.0, "b": 2**0.5})
    assert watch.table.shares == pytest.approx({"a": 4.5 / 5.5, "b": 1.0 / 5.5})


class Rows(keras.Model):
    def __init__(self):
        super().__init__(name="rows")
        self.table = keras.layers.Embedding(3, 2, embeddings_initializer="ones")

    def call(self, batch, training=False):
        return tf.reduce_sum(self.table(tf.cast(batch["x"], tf.int32)))


def test_gradients_of_an_embedding_and_one_loss():
    """Row 1 is looked up twice: the gradient is (0, 0), (2, 2), (1, 1)."""
    watch = Watch(Every(steps=1))
    train(watch, 1, Rows, rows([1.0, 1.0, 2.0], 3))
    assert watch.table.norms["rows/embedding/embeddings"][0] == pytest.approx(10**0.5)
    assert watch.table.losses == ()


def test_a_skipped_update_is_no_update():
    def model():
        made = Two()
        made.w.assign([float("inf"), 1.0])
        return made

    watch = Watch(Every(steps=1))
    trainer = train(watch, 1, model, rows([0.0], 1), skip_nonfinite=True)
    assert trainer.step == 1
    scalars = watch.table.scalars()
    assert "watch/weight_norm/two/w" not in scalars  # it is infinite
    assert all(np.isfinite([*scalars.values()]))


def test_what_cannot_be_watched_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"Watch needs its steps in advance. Use Every\(steps"):
        Watch(Every(seconds=1))
    with pytest.raises(ValueError, match=r"Watch: 'trnk/\*' matches no trained variable.*trunk"):
        train(Watch(Every(steps=100), "trnk/*"), 1)
    with pytest.raises(ValueError, match="two Watch hooks"):
        train([Watch(Every(steps=5)), Watch(Every(steps=5))], 1)


@pytest.mark.parametrize("jit", [False, pytest.param("loop", marks=SLOW)])
def test_what_cannot_be_traced_is_known_before_the_first_step(jit, monkeypatch):
    def fail(*_):
        raise ValueError("no such gradient")

    monkeypatch.setattr(Watching, "watched", fail)
    watch, done = Watch(Every(steps=4)), []
    watch.before_train = lambda: done.append(watch.trainer)
    with pytest.raises(ValueError, match="no such gradient"):
        train(watch, 4, jit=jit)
    assert done[0].step == 0
    trainer = train(Watch(Every(steps=4)), 3, jit=jit)  # it has nothing to watch
    assert trainer.step == 3


def test_one_more_trace_and_none_of_the_other_steps(monkeypatch):
    from tfloss.engine.engine import Engine

    engines = []
    made = Engine.__init__

    def keep(self, *args, **kwargs):
        engines.append(self)
        made(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "__init__", keep)
    ops = []
    for hooks in ([], [Watch(Every(steps=2), "trunk/*", shared=None, histograms=False)]):
        train(hooks, 6)
        engine = engines[-1]
        (silent,) = engine._silent._list_all_concrete_functions()
        ops.append([op.type for op in silent.graph.get_operations()])
        assert engine.traces == 1 + len(hooks)
    assert ops[0] == ops[1]
