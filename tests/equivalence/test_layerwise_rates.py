"""Rates by variable, exclusions from decay and a thaw, worked out by hand with all other options.

The reference is NumPy in float64. Each gradient is the mean of one feature over the global batch,
so a wrong division by replicas or micro-batches changes every weight. Each run is also killed and
resumed, and must end with the same bits.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.hooks import Hook, OnSteps, SaveCheckpoint, Unfreeze

STEPS, AT, BATCH, OVERFLOW = 6, 3, 8, 1
SLOPES = {"trunk/kernel": 0.25, "trunk/bias": 0.5, "head/kernel": 0.75, "head/bias": 1.0}
MULTIPLIERS = {"*/bias": 2.0, "trunk/*": 0.25}
FACTORS = {"trunk/kernel": 0.25, "trunk/bias": 0.5, "head/kernel": 1.0, "head/bias": 2.0}
RATE, DECAY, CLIP, EMA = 0.125, 0.25, 0.5, 0.75
START = [1.0, -0.5]


class Part(keras.layers.Layer):
    """A linear function of two features, with a constant slope for each weight."""

    def build(self, shape=None):
        start = keras.initializers.Constant(START)
        self.kernel = self.add_weight(name="kernel", shape=[2], initializer=start)
        self.bias = self.add_weight(name="bias", shape=[2], initializer=start)

    def call(self, x):
        one, other = (SLOPES[f"{self.name}/{name}"] for name in ("kernel", "bias"))
        kernel, bias = self.kernel, self.bias
        return tf.reduce_sum(x[:, :2] * one * kernel + x[:, 2:] * other * bias, 1)


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.trunk, self.head = Part(name="trunk"), Part(name="head")

    def build(self, shape=None):
        self.trunk.build()
        self.head.build()

    def call(self, batch, training=False):
        return tf.reduce_mean(self.trunk(batch["x"]) + self.head(batch["x"]))


def features():
    """Exact in float16. The first batch but one makes a gradient infinite there."""
    x = np.random.RandomState(0).choice([0.25, 0.5, 0.75, 1.0], [STEPS * BATCH, 4])
    x[OVERFLOW * BATCH : (OVERFLOW + 1) * BATCH] = 8.0
    return x.astype(np.float32)


# The reference


class AdamW:
    """Loshchilov and Hutter, algorithm 2."""

    def __init__(self):
        self.m = self.v = np.zeros(2)

    def step(self, w, g, t, rate, decay):
        w = w - rate * decay * w
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        return w - rate * (self.m / (1 - 0.9**t)) / (np.sqrt(self.v / (1 - 0.999**t)) + 1e-7)


class Momentum:
    """SGD with Nesterov's momentum as Keras has it (Sutskever et al., section 2)."""

    def __init__(self):
        self.velocity = np.zeros(2)

    def step(self, w, g, t, rate, decay):
        w = w - rate * decay * w
        self.velocity = 0.9 * self.velocity - rate * g
        return w + 0.9 * self.velocity - rate * g


def by_hand(rules, names, multipliers, excluded, thaw, clip, ema, amp):
    """The weights, the averages, and the updates of each group.

    rules: `{group: class above}`; names: `{group: its variables}`.
    """
    x = features().astype(np.float64).reshape(STEPS, BATCH, 2, 2).mean(1)
    slots = {name: rules[group]() for group, mine in names.items() for name in mine}
    weights = {name: np.array(START) for name in SLOPES}
    averages, counts = dict(weights), dict.fromkeys(names, 0)
    for step in range(STEPS):
        if amp and step == OVERFLOW:
            continue
        for group, mine in names.items():
            trained = [one for one in mine if not (thaw and step < AT and one.startswith("trunk"))]
            if not trained:
                continue
            counts[group] += 1
            grads = {n: SLOPES[n] * x[step][int(n.endswith("bias"))] for n in trained}
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            for n, g in grads.items():
                g = g * min(1.0, clip / norm) if clip else g
                rate = RATE * (FACTORS[n] if multipliers else 1.0)
                decay = 0.0 if excluded and n.endswith("bias") else DECAY
                weights[n] = slots[n].step(weights[n], g, counts[group], rate, decay)
        if ema:
            averages = {n: EMA * a + (1 - EMA) * weights[n] for n, a in averages.items()}
    return weights, averages, counts


# The run

OPTIMIZERS = {
    "adamw": (AdamW, lambda: keras.optimizers.AdamW(RATE, weight_decay=DECAY)),
    "sgd": (
        Momentum,
        lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True, weight_decay=DECAY),
    ),
}


class Kill(Hook):
    def __init__(self, step):
        self.every = OnSteps(step)

    def after_step(self, step):
        raise RuntimeError("killed")


def make_trainer(strategy, workdir, rules, features, hooks, **options):
    arguments = {}
    if "exclusions" in features:
        arguments["no_weight_decay"] = ["*/bias"]
    if "thaw" in features:
        hooks = [Unfreeze(AT, "trunk/*"), *hooks]
    multipliers = MULTIPLIERS if "multipliers" in features else {}
    keras.utils.clear_session(free_memory=False)
    with strategy.scope():
        groups = {
            name: tfloss.Group(
                OPTIMIZERS[rule][1](),
                None if name == "all" else (lambda model, name=name: getattr(model, name)),
                rate_multipliers={
                    glob: factor
                    for glob, factor in multipliers.items()
                    if name in ("all", "trunk") or glob != "trunk/*"
                },
                **arguments,
            )
            for name, rule in rules.items()
        }
        return tfloss.Trainer(
            Net(),
            groups["all"] if "all" in groups else groups,
            strategy=strategy,
            workdir=workdir,
            hooks=hooks,
            default_hooks=False,
            log_every=1,
            **options,
        )


FEATURES = ("multipliers", "exclusions", "thaw")
ALL = {"clip_norm": CLIP, "ema": EMA, "precision": "mixed_float16", "accumulate": 2}
WHERE = [(False, 1), (False, 2), (True, 1), (True, 2), ("loop", 1)]
RULES = [{"all": "adamw"}, {"all": "sgd"}, {"trunk": "adamw", "head": "sgd"}]


def cases():
    """Each option alone and all of them, in each mode; the rest takes turns."""
    single = [{name: value} for name, value in ALL.items()]
    found = []
    for i, (jit, count) in enumerate(WHERE):
        for j, options in enumerate([{}, *single, ALL]):
            more = {"fused_adam": False} if (i + j) % 2 else {}
            found.append((jit, count, RULES[(i + j) % 3], FEATURES, {**options, **more}))
    for i, feature in enumerate(FEATURES):
        found.append((False, 1 + i % 2, RULES[i], (feature,), ALL))
    return [
        pytest.param(
            *case,
            2 + i % 3,  # before, at and after the thaw
            id="-".join(map(str, [*case[:2], *case[2], *case[4]])),
        )
        for i, case in enumerate(found)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("jit", "count", "rules", "features_on", "options", "kill"), cases())
def test_weights_are_those_worked_out_by_hand_and_a_resumed_run_has_the_same_bits(
    jit, count, rules, features_on, options, kill, replicas, tmp_path
):
    strategy = replicas(count)
    size = BATCH // options.get("accumulate", 1)
    data = tf.data.Dataset.from_tensor_slices({"x": features()}).batch(size, drop_remainder=True)

    def make(where, *hooks):
        hooks = [SaveCheckpoint(OnSteps(kill)), *hooks]
        return make_trainer(
            strategy, tmp_path / where, rules, features_on, hooks, jit=jit, **options
        )

    whole = make("whole")
    whole.train(data, STEPS)
    names = {
        group: [name for name in SLOPES if group == "all" or name.startswith(group)]
        for group in rules
    }
    weights, averages, counts = by_hand(
        {group: OPTIMIZERS[rule][0] for group, rule in rules.items()},
        names,
        *(feature in features_on for feature in FEATURES),
        options.get("clip_norm"),
        "ema" in options,
        "precision" in options,
    )
    for variable in whole.model.weights:
        name = variable.path.removeprefix("net/")
        np.testing.assert_allclose(variable.numpy(), weights[name], atol=4e-5, err_msg=name)
        if "ema" in options:
            average = whole.train_step.averages.variables()[f"ema/{variable.path}"]
            np.testing.assert_allclose(average.numpy(), averages[name], atol=4e-5, err_msg=name)
    found = {
        name: int(o.iterations.numpy())
        for name, o in zip(counts, whole.train_step.optimizers.values(), strict=True)
    }
    assert found == counts

    with pytest.raises(RuntimeError, match="killed"):
        make("killed", Kill(kill + 1)).train(data, STEPS)
    again = make("killed")
    again.train(data, STEPS)
    expected, resumed = whole.state.variables(), again.state.variables()
    assert expected.keys() == resumed.keys()
    for name, variable in expected.items():
        np.testing.assert_array_equal(resumed[name].numpy(), variable.numpy(), err_msg=name)
