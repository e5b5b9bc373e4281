import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import make_step, run
from tfloss.engine.engine import Engine
from tfloss.errors import LossError, ModelError
from tfloss.optimizers.groups import Group, due_sets, make_groups, split_losses

SGD = keras.optimizers.SGD
DATA = tf.data.Dataset.from_tensor_slices({"x": np.ones(8, np.float32)}).batch(8).repeat()


class Pair(keras.Model):
    """a and b, each pulled up by its own loss at a slope that the other one sets."""

    def __init__(self, report=None):
        super().__init__(name="pair")
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.b = self.add_weight(name="b", shape=(), initializer="ones")
        self.report = report
        self.built = True

    def call(self, batch, training=False):
        if self.report is not None:
            return self.report(self, batch)
        x = tf.reduce_mean(batch["x"])
        return {"a": {"pull": -self.a * self.b * x}, "b": {"pull": -2.0 * self.a * self.b * x}}


def groups(**options):
    return {
        "a": Group(SGD(0.5), lambda model: [model.a], **options.get("a", {})),
        "b": Group(SGD(0.5), lambda model: [model.b], **options.get("b", {})),
    }


# Each loss updates its own group


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_a_loss_updates_only_the_group_it_is_named_after(count, mode, replicas):
    train_step, found, _ = run(
        Pair, DATA, steps=2, optimizer=groups, strategy=replicas(count), mode=mode
    )
    # Both gradients are taken at the same weights: da = b, db = 2 a, times 0.5.
    # (1, 1) -> (1.5, 2) -> (2.5, 3.5). Without groups da would be 3 b.
    assert train_step.model.a.numpy() == pytest.approx(2.5)
    assert train_step.model.b.numpy() == pytest.approx(3.5)
    assert found["losses/a/pull"] == pytest.approx(-3.0)
    assert found["losses/total"] == pytest.approx(-9.0)


@pytest.mark.parametrize("count", [1, 2])
def test_groups_alternate(count, replicas):
    options = {"a": {"every": 2}, "b": {"every": 2, "offset": 1}}
    train_step, iterator = make_step(
        Pair, DATA, optimizer=lambda: groups(**options), strategy=replicas(count)
    )
    Engine(train_step).run(iterator, 3)
    # a at steps 0 and 2, b at step 1, with a's new value:
    # (1, 1) -> (1.5, 1) -> (1.5, 2.5) -> (2.75, 2.5)
    assert train_step.model.a.numpy() == pytest.approx(2.75)
    assert train_step.model.b.numpy() == pytest.approx(2.5)
    iterations = {name: int(o.iterations.numpy()) for name, o in train_step.optimizers.items()}
    assert iterations == {"a": 2, "b": 1}
    assert train_step.counter.numpy() == 3


def test_five_critic_steps_to_one_of_the_generator():
    train_step, iterator = make_step(
        Pair, DATA, optimizer=lambda: groups(a={"every": 5, "offset": 4})
    )
    Engine(train_step).run(iterator, 10)
    iterations = {name: int(o.iterations.numpy()) for name, o in train_step.optimizers.items()}
    assert iterations == {"a": 2, "b": 10}


def test_each_group_is_clipped_by_its_own_norm():
    train_step, found, _ = run(Pair, DATA, optimizer=groups, clip_norm=1.5)
    # Gradients -1 and -2: only the second is cut, to -1.5.
    assert train_step.model.a.numpy() == pytest.approx(1.5)
    assert train_step.model.b.numpy() == pytest.approx(1.75)
    assert (found["gradient_norm/a"], found["gradient_norm/b"]) == (1.0, 2.0)


def test_slots_are_only_those_of_the_group():
    rules = {"a": (keras.optimizers.Adam(), lambda m: [m.a]), "b": (SGD(), lambda m: [m.b])}
    train_step, _ = make_step(Pair, DATA, optimizer=lambda: rules)
    names = [v.path for v in train_step.optimizers["a"].variables]
    assert len([n for n in names if "moment" in n]) == 0 or all("pair_b" not in n for n in names)
    assert sum("velocity" in n or "momentum" in n for n in names) == 2


def test_variables_may_be_a_layer_that_is_built_later():
    class Nets(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(1), keras.layers.Dense(1)

        def call(self, batch, training=False):
            x = batch["x"][:, None]
            return {k: tf.reduce_mean(getattr(self, k)(x) ** 2) for k in ("one", "two")}

    model = Nets()
    rules = {"one": (SGD(0.1), model.one), "two": (SGD(0.1), [model.two])}
    train_step, iterator = make_step(lambda: model, DATA, optimizer=lambda: rules)
    before = model.two.kernel.numpy()
    Engine(train_step).run(iterator, 1)
    assert (model.two.kernel.numpy() != before).all()
    model.one.trainable = False
    with pytest.raises(ModelError, match="group 'one' has no trainable variables"):
        Engine(train_step).run(iterator, 1)


def test_regularizers_count_for_the_group_of_their_variable():
    class Model(Pair):
        def __init__(self):
            super().__init__()
            self.a.regularizer = keras.regularizers.L2(1.0)

    train_step, found, _ = run(Model, DATA, optimizer=groups)
    assert found["losses/regularization"] == 1.0
    assert train_step.model.a.numpy() == pytest.approx(1 + 0.5 * (1 - 2))
    assert train_step.model.b.numpy() == pytest.approx(2.0)


# One loss of several groups


def shared(model, batch):
    """One loss, named after no group."""
    return -model.a * model.b * tf.reduce_mean(batch["x"])


def rates(a, b, **options):
    return lambda: {
        "a": Group(SGD(a), lambda model: [model.a], **options),
        "b": Group(SGD(b), lambda model: [model.b]),
    }


@pytest.mark.parametrize(("mode", "count"), [("graph", 1), ("graph", 2), ("step", 2), ("loop", 1)])
def test_a_loss_that_is_named_after_no_group_trains_all_of_them(mode, count, replicas):
    train_step, found, _ = run(
        lambda: Pair(shared),
        DATA,
        steps=2,
        optimizer=rates(0.5, 0.25),
        strategy=replicas(count),
        mode=mode,
    )
    # da = b and db = a, at the same weights: (1, 1) -> (1.5, 1.25) -> (2.125, 1.625).
    assert train_step.model.a.numpy() == pytest.approx(2.125)
    assert train_step.model.b.numpy() == pytest.approx(1.625)
    assert found["losses/loss"] == pytest.approx(-1.875)


def test_losses_that_all_groups_share_are_named_once(capsys):
    """A GAN's "g" and "d" with groups of other names would train both nets with both losses."""

    def report(m, batch):
        return {"g": -m.a * m.b, "d": m.a * m.b}

    run(lambda: Pair(report), DATA, 2, optimizer=rates(0.5, 0.25))
    err = capsys.readouterr().err
    assert err.count("the losses g, d train all optimizer groups that they reach (a, b)") == 1
    assert "'a/...'" in err
    run(lambda: Pair(shared), DATA, optimizer=rates(0.5, 0.25))  # one loss is meant for all
    run(lambda: Pair(lambda m, batch: {"a": m.a, "d": m.b}), DATA, optimizer=rates(0.5, 0.25))
    assert "train all optimizer groups" not in capsys.readouterr().err


def test_a_shared_loss_is_added_to_those_of_a_group():
    def report(m, batch):
        return {"pull": -m.a * m.b, "b": {"more": -3.0 * m.b}}

    train_step, _, _ = run(lambda: Pair(report), DATA, optimizer=rates(0.5, 0.25))
    assert train_step.model.a.numpy() == pytest.approx(1 + 0.5 * 1)
    assert train_step.model.b.numpy() == pytest.approx(1 + 0.25 * (1 + 3))


@pytest.mark.parametrize("count", [1, 2])
def test_a_group_that_is_not_due_gets_no_gradient_of_a_shared_loss(count, replicas):
    train_step, iterator = make_step(
        lambda: Pair(shared), DATA, optimizer=rates(0.5, 0.5, every=2), strategy=replicas(count)
    )
    Engine(train_step).run(iterator, 3)
    # a at steps 0 and 2: (1, 1) -> (1.5, 1.5) -> (1.5, 2.25) -> (2.625, 3).
    assert train_step.model.a.numpy() == pytest.approx(2.625)
    assert train_step.model.b.numpy() == pytest.approx(3.0)


@pytest.mark.parametrize(("report", "passes"), [("shared", 1), ("named", 2)])
def test_groups_of_the_same_losses_share_one_backward_pass(report, passes):
    """Both groups lie below the tanh, whose gradient is one op for each backward pass."""

    def forward(m, batch):
        y = tf.tanh(m.a * m.b * batch["x"])
        loss = tf.reduce_mean(y)
        return loss if report == "shared" else {"a": loss, "b": loss * 1.0}

    train_step, iterator = make_step(lambda: Pair(forward), DATA, optimizer=groups)
    graph = tf.function(lambda batch: train_step(batch).row(), autograph=False)
    ops = graph.get_concrete_function(next(iterator)).graph.get_operations()
    assert sum(op.type == "TanhGrad" for op in ops) == passes


def test_a_group_that_no_loss_reaches_is_refused():
    model = lambda: Pair(lambda m, batch: {"pull": m.a * 1.0, "aux": 0.0})  # noqa: E731
    train_step, iterator = make_step(model, DATA, optimizer=groups)
    expected = "No loss reaches optimizer group 'b': the gradients of aux, pull .*'pair/b'"
    with pytest.raises(LossError, match=expected):
        Engine(train_step).run(iterator, 1)


# What is refused


def test_losses_and_groups_must_match():
    x = {"a": {"l": 1}, "c": 2}
    assert split_losses(["a/l", "c/l"], ["a", "b"]) == {"a": ["a/l", "c/l"], "b": ["c/l"]}
    with pytest.raises(LossError, match="No loss is reported for optimizer group 'b'"):
        split_losses(["a/l", "regularization"], ["a", "b"])
    assert split_losses(["a", "b/x", "regularization"], ["a", "b"]) == {
        "a": ["a", "regularization"],
        "b": ["b/x", "regularization"],
    }
    assert split_losses(["regularization/x", "b/x", "regularization"], ["regularization", "b"]) == {
        "regularization": ["regularization/x", "regularization"],
        "b": ["b/x", "regularization"],
    }
    assert split_losses(list(x), ["only"]) == {"only": ["a", "c"]}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("genrator/l1", "generator/l1"),
        ("Generator/l1", "generator/l1"),
        ("critics/real", "critic/real"),
        ("generator_loss", "generator/loss"),
        ("loss_critic", "critic/loss"),
    ],
)
def test_a_name_that_is_nearly_that_of_a_group_is_refused(name, own):
    with pytest.raises(LossError, match=f"Loss '{name}' .*resembles .*name it '{own}'"):
        split_losses([name, "generator/x", "critic/x"], ["generator", "critic"])


def test_a_loss_that_does_not_reach_its_own_group_is_refused():
    def report(m, batch):
        return {"a": m.a * 1.0, "b": m.a * 2.0}

    train_step, iterator = make_step(lambda: Pair(report), DATA, optimizer=groups)
    with pytest.raises(LossError, match="loss 'b' reaches no trainable variable"):
        Engine(train_step).run(iterator, 1)


def test_a_variable_in_two_groups_is_refused():
    def both():
        return {"a": (SGD(), lambda m: [m.a, m.b]), "b": (SGD(), lambda m: [m.b])}

    with pytest.raises(ModelError, match="'pair/b' is in two optimizer groups, 'a' and 'b'"):
        make_step(Pair, DATA, optimizer=both)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adam", "must be a Keras optimizer, got 'adam'"),
        ({}, "empty mapping"),
        ({"a": SGD()}, r"group 'a' must be \(optimizer, variables\)"),
        ({"model": (SGD(), [])}, "can't be named 'model'"),
        ({"a/b": (SGD(), [])}, "can't be named 'a/b'"),
        (lambda: dict.fromkeys("ab", (SGD(), [])), "same optimizer object"),
        (keras.optimizers.LossScaleOptimizer(SGD()), 'precision="mixed_float16"'),
        (SGD(gradient_accumulation_steps=4), "accumulate=4"),
        (SGD(loss_scale_factor=8.0), "loss_scale_factor"),
        (SGD(use_ema=True, ema_momentum=0.9), r"give ema=0\.9, then use evaluate\(ema=True\)"),
        (SGD(use_ema=True, ema_overwrite_frequency=5), "ema_overwrite_frequency"),
        (lambda: keras.optimizers.MultiOptimizer(lambda variable: SGD()), "a group for each"),
        (lambda: Group(SGD(), every=0), "every must be at least 1"),
        (lambda: Group(SGD(), every=2, offset=2), "offset from 0 to every - 1"),
    ],
)
def test_optimizers_that_make_no_sense_are_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        make_groups(optimizer() if callable(optimizer) else optimizer)


@pytest.mark.parametrize("wrong", ["pair/a", ["a"], [None], 3, lambda m: [m.a, tf.zeros([])]])
def test_what_is_no_variables_is_refused(wrong):
    optimizer = {"a": (SGD(), wrong), "b": (SGD(), lambda m: [m.b])}
    with pytest.raises(ValueError, match="of an optimizer group can't be .*Give a layer"):
        make_step(Pair, DATA, optimizer=lambda: optimizer)


def test_variables_may_be_a_dict_of_layers():
    model = keras.Sequential([keras.layers.Dense(1, name="one"), keras.layers.Dense(1)])
    model.build([None, 1])
    group = Group(SGD(), {"parts": {"first": model.layers[0]}})
    assert [v.path for v in group.trainable(model)] == [v.path for v in model.layers[0].weights]


def test_due_sets():
    found = make_groups(groups(a={"every": 2}, b={"every": 3, "offset": 1}))
    assert due_sets(found) == [("a",), ("b",), ("a",), (), ("a", "b"), ()]
    assert due_sets(make_groups(SGD())) == [("optimizer",)]
