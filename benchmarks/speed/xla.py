"""The program that XLA makes of the loop, and attempts to make it faster.

python benchmarks/speed/xla.py [mlp | small]     # two minutes on two cores

It prints the number of ops in the body of the compiled loop, for tfloss and a hand-written loop. It
then prints the speed of hand-written loops with two and four steps per iteration, with all weights
in one flat vector, and with SGD, which is little more than the forward and backward pass.
"""

import collections
import functools
import os
import re
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf
from contenders import CONTENDERS, _at, _build, training_step
from workloads import WORKLOADS

ROUNDS = 7
STEPS = 100  # in one block of batches


def body(hlo: str) -> collections.Counter:
    """Counts the kinds of ops in the loop's body of an optimized program."""
    name = re.search(r"while\(.*body=%?([\w.\-]+)", hlo)[1]
    start = hlo.index(f"%{name} (")
    lines = hlo[start : hlo.index("\n}", start)].split("\n")[1:]
    kinds = (re.search(r"= (?:\(.*\)|\S+) ([\w\-]+)\(", line) for line in lines)
    return collections.Counter(kind[1] for kind in kinds if kind)


def of_tfloss(work) -> collections.Counter:
    """Counts the ops of `Trainer(jit="loop")`."""
    one = CONTENDERS["tfloss"](work)
    one.trainer._modes._jit = "loop"
    one.trainer.train(one.data, 300)
    compiled = one.trainer._modes._engines["loop"]._compiled
    blocks = one.trainer._feed.input.source("loop")
    part = blocks.take(STEPS)
    while part.block is None:
        part = blocks.take(STEPS)
    bounds = tf.constant(0), tf.constant(1)
    return body(compiled._run.experimental_get_compiler_ir(part.block, *bounds)("optimized_hlo"))


def by_hand(work, unroll: int = 1, optimizer: keras.optimizers.Optimizer | None = None):
    """Makes a function that runs a loop over a block."""
    net, optimizer = work.make(), optimizer or work.optimizer()
    _build(net, optimizer, work)
    step = training_step(net, optimizer, work)

    @tf.function(jit_compile=True)
    def many(block):
        total = 0.0
        for i in tf.range(0, STEPS, unroll):
            for k in range(unroll):
                total += step(tf.nest.map_structure(functools.partial(_at, i + k), block))
        return total / STEPS

    return many


def flat(work):
    """Makes the same with one vector of weights, so that Adam is three ops for all of them."""
    net = work.make()
    _build(net, work.optimizer(), work)
    shapes = [v.shape for v in net.trainable_variables]
    sizes = [v.shape.num_elements() for v in net.trainable_variables]
    weights = tf.Variable(tf.concat([tf.reshape(v, [-1]) for v in net.trainable_variables], 0))
    optimizer = work.optimizer()
    optimizer.build([keras.Variable(weights.numpy(), name="flat")])
    vector = optimizer._trainable_variables[0]

    def step(batch):
        parts = tf.split(vector.value, sizes)
        values = [tf.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]
        mapping = list(zip(net.trainable_variables, values, strict=True))
        with tf.GradientTape() as tape:
            tape.watch(values)
            with keras.StatelessScope(state_mapping=mapping):
                loss = sum(work.losses(net, batch).values())
        gradient = tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, values)], 0)
        optimizer.apply([gradient], [vector])
        return loss

    @tf.function(jit_compile=True)
    def many(block):
        total = 0.0
        for i in tf.range(STEPS):
            total += step(tf.nest.map_structure(functools.partial(_at, i), block))
        return total / STEPS

    return many


def main() -> None:
    """Runs the benchmark and prints its results."""
    work = WORKLOADS[sys.argv[1] if len(sys.argv) > 1 else "mlp"]
    block = next(iter(work.data().batch(STEPS)))
    plain = by_hand(work)
    print("by hand:", dict(body(plain.experimental_get_compiler_ir(block)("optimized_hlo"))))
    print("tfloss:", dict(of_tfloss(work)))
    variants = {"one": plain, "two": by_hand(work, 2), "four": by_hand(work, 4), "flat": flat(work)}
    variants["SGD"] = by_hand(work, optimizer=keras.optimizers.SGD(0.0))
    seconds = {name: [] for name in variants}
    for call in variants.values():
        float(call(block))
    for _ in range(ROUNDS):
        for name, call in variants.items():
            began = time.perf_counter()
            for _ in range(5):
                float(call(block))
            seconds[name].append((time.perf_counter() - began) / 5 / STEPS)
    for name, found in seconds.items():
        ratios = sorted(one / other for one, other in zip(found, seconds["one"], strict=True))
        print(
            f"{name}: {sorted(found)[ROUNDS // 2] * 1e6:.0f} us per step, {ratios[ROUNDS // 2]:.2f}"
        )


if __name__ == "__main__":
    main()
