"""Writes docs/correctness.md: known faults of TensorFlow and Keras, and the tests that show them.

    python docs/correctness.py

A test marked `@pytest.mark.promise(3)` belongs to statement 3. If it is also marked `upstream`, it
shows that plain TensorFlow or Keras has the fault. When such a test fails, upstream has changed.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# TensorFlow 2.21, Keras 3.15.
STATEMENTS = {
    1: (
        "With losses added before and after a synchronisation (synchronised BatchNormalization, "
        "`all_reduce`), replicas receive each other's losses. Values and gradients are wrong.",
        "Each replica has its own losses. They are float32 and can be read several times.",
    ),
    2: (
        "`tf.train.Checkpoint` omits layers in lists and dicts, and `assert_consumed` passes.",
        "Every variable is saved by its path, wherever the layer is stored.",
    ),
    3: (
        "`LossScaleOptimizer` checks only the gradients of replica 0. An infinite gradient on "
        "another replica is applied.",
        "If a gradient on any replica is not finite, nothing changes on any replica, and the "
        "scale is halved once.",
    ),
    4: (
        "BatchNormalization's statistics differ between replicas, and those of replica 0 are "
        "saved.",
        "The means over replicas are saved, evaluated and exported.",
    ),
    5: (
        "State that is set in the main thread is invisible in the thread of a replica.",
        "Summaries and `current_step()` work anywhere in the forward pass.",
    ),
    6: (
        "Dropout draws the same mask on every replica.",
        "Each replica draws its own masks. They are the same in another run with the same seed, "
        "and after resuming.",
    ),
    7: (
        "`tf.summary` in traced code freezes the step, the writer and the tag, and only replica 0 "
        "writes.",
        "Step and tag are right. Each summary is written once, averaged over replicas, and only "
        "at logged steps.",
    ),
    8: (
        "Optimizers clip the gradient of each replica, and then sum.",
        "Gradients are summed over replicas, and then clipped.",
    ),
    9: (
        "With uneven or empty batches, or losses that are normalised by a count, several replicas "
        "compute a different gradient. An empty batch makes statistics NaN.",
        "The gradient is that of the global batch, however it is split. Empty replicas change "
        "nothing.",
    ),
    10: (
        "`add_loss` in a rematerialised block has no gradient.",
        "It is refused, with the source line.",
    ),
    11: (
        "Labels in the input are cast to half precision.",
        "Labels reach the forward pass bit for bit, and losses are float32.",
    ),
    12: (
        "Optimizer slots are restored by position, and a restore that fails leaves half of the "
        "values assigned.",
        "Slots are restored by the path of their variable. Nothing is assigned unless everything "
        "fits.",
    ),
    13: (
        "Checkpoints don't contain the random state of Dropout.",
        "Checkpoints contain it. A resumed run continues bit for bit.",
    ),
    14: (
        "With accumulation, schedules and averages advance with each micro-batch.",
        "`accumulate=4` with batches of 8 equals one batch of 32, in weights, schedule, averages "
        "and clipping.",
    ),
    15: (
        "Accumulation and averages crash on several replicas.",
        "Accumulation, averages, clipping, scaling and skipping work, alone and together.",
    ),
    16: (
        "Freezing a layer after the step was traced has no effect.",
        "Freezing and unfreezing between two `train` calls take effect. Otherwise the step is "
        "traced once.",
    ),
    17: (
        "A collective read on one worker hangs. A missing worker makes start-up hang forever.",
        "All workers read. Start-up has a timeout, and the error names the missing workers. "
        "SIGTERM saves a checkpoint.",
    ),
    18: (
        "`fit` fails under `MultiWorkerMirroredStrategy`.",
        "One process and several workers compute the same numbers.",
    ),
    19: (
        "Checkpoints can't contain a distributed iterator, nor one that reads Python code. A "
        "resumed run restarts its data.",
        "The data continue where training stopped, on any number of replicas. With a `Source` "
        "this is immediate.",
    ),
    20: (
        "Variables created inside the step fail with an obscure error, or are missing in "
        "checkpoints.",
        "Variables are created before the first step. Others are refused by name, and so are "
        "those of another scope.",
    ),
    21: (
        "A summary under XLA doesn't compile.",
        "Summaries are outputs of the step, and compile.",
    ),
    22: (
        "`add_loss` and summaries in branches and loops raise InaccessibleTensorError at a later "
        "place.",
        "They are refused where they are called, with the remedy.",
    ),
    25: (
        "A mean over no elements is NaN, and so is its gradient.",
        "`global_mean` over no elements is 0 with gradient 0, on one replica or on all.",
    ),
    26: (
        "`fit` with several steps per call fails on several replicas.",
        "Any number of steps per call works on any number of replicas.",
    ),
    28: (
        "Restoring brings back an old constant learning rate.",
        "The new learning rate applies, and the difference is reported.",
    ),
    29: (
        "Models that compute their own losses have no validation loss.",
        "Validation losses are computed by name, without any change of state.",
    ),
    31: (
        "Closing a `tf.data` iterator waits for the autotuner's thread, for as long as the "
        "iterator was used, up to a minute. The end of `fit` and of the process hang that long.",
        "`train` and `evaluate` return within 0.2 s of their last step.",
    ),
    32: (
        "If a loss is finite and its gradient is not (`tf.where(p > 0, tf.math.log(p), 0.)` at 0), "
        "weights become NaN. `TerminateOnNaN` watches the loss, which then is 0.0, and `fit` ends "
        "well.",
        "The step changes nothing, in all modes. The error names the group, the losses and the "
        "variables.",
    ),
    33: (
        "`ModelCheckpoint` saves weights that are NaN or infinite, as the best ones, too.",
        "Checkpoints and best exports of such weights are refused, by name.",
    ),
    34: (
        "An embedding's gradient lists a row as often as the batch looks it up, and optimizers "
        "square each entry. A row that occurs 64 times moves several times too far with Adam, "
        "Adagrad, RMSprop, AdamW, Nadam and Lamb.",
        "The update is that of the dense gradient, with every optimizer and option, in all modes, "
        "on any number of replicas. Momentum also moves rows that were not looked up.",
    ),
    35: (
        "Scales and maxima (amax histories) of float8 layers differ from replica to replica. If a "
        "layer is called twice, they are summed.",
        "They are those of the whole batch: maxima over replicas, micro-batches and calls, never "
        "scaled, clipped or averaged.",
    ),
    36: (
        "The default reduction of `MirroredStrategy` refuses gradients of several dtypes.",
        "Gradients of any dtypes are reduced, and half precision is summed in float32.",
    ),
    40: (
        "Metrics of predictions [n] (MAE, MSE, Hinge and so on) are the mean over batches: the "
        "examples of a shorter batch count more.",
        "Every example counts once, on any number of replicas. A metric that mixes the examples of "
        "a batch is refused.",
    ),
    41: (
        "Losses with masks, `ignore_class` or `mean_with_sample_weight` divide by the count of "
        "each replica. Dice, Tversky and Circle losses are those of each replica's examples.",
        "`adapters.supervised` divides by the count of the global batch. It computes Dice and the "
        "like of the whole batch, or refuses them. In a model's own `call`, the first step warns "
        "of losses that are divided by a number of one replica's examples, with loss and line.",
    ),
    42: (
        "`get_config` of some metrics lacks arguments, so that a copy computes another number.",
        "A metric that was created in the scope of a strategy is copied with all of its arguments.",
    ),
    43: (
        "A vocabulary is not among the weights: `load_weights` under another order of the tokens "
        "is silently wrong. `tf.train.Checkpoint` restores the variables of a Normalization, and "
        "not the constants that it computes with.",
        "Vocabularies, bins, configurations of preprocessing layers and whatever a layer saves "
        "by its own methods are saved. They are restored or, where they differ, refused by name. "
        "Constants made of variables are made again.",
    ),
    44: (
        "The states of stateful RNNs, tables and raw `tf.Variable`s are not among the weights. "
        "A checkpoint of the weights lacks them, and evaluation changes them.",
        "They are saved and resumed, on any number of replicas. Evaluation leaves every state as "
        "it was. State that can't be saved, such as that of a queue or of Python code, is listed "
        "before the first step.",
    ),
    45: (
        "`keras.random` without a seed, and layers that use it so, draw from a generator that each "
        "thread has for itself. On several replicas this fails, and no checkpoint has its state.",
        "Each replica draws its own numbers. Checkpoints contain the state, and evaluation leaves "
        "it as it was.",
    ),
    47: (
        "`BackupAndRestore` restores the learning rate of the backup, even if the script gives "
        "another one now. It says nothing.",
        "A hyperparameter that a hook has set is state and is restored. One that the script has "
        "changed applies, and a warning names both values.",
    ),
    48: (
        "`BackupAndRestore` doesn't save what callbacks count: the patience of `EarlyStopping` "
        "starts again.",
        "Checkpoints hold the state of each hook, of any Python values. A hook gets its own state "
        "back, in whatever order the hooks stand.",
    ),
    49: (
        "`training=False` given to one sublayer also applies to the layers called after it, so "
        "that a frozen layer turns off Dropout. Layers called outside of a model's `call`, as in a "
        "GAN's step, are in inference mode.",
        "The mode of a layer ends with its call. All layers that `minimize` calls are in training "
        "mode, unless their call says otherwise.",
    ),
    50: (
        "A rematerialised block is run again in inference mode, if its layers take the mode from "
        "the call around them. Its gradient is wrong.",
        "It is run again in the same mode, and changes no statistics twice.",
    ),
    51: (
        "A functional model passes its own training mode to layers that were called with "
        "`training=False` when it was built.",
        "They keep their mode.",
    ),
    52: (
        "Python attributes and variables that a step reads are frozen when it is traced. To change "
        "them has no effect.",
        "Changes between two `train` calls take effect, and changes during a call are reported. A "
        "function whose loss weight can't change is refused.",
    ),
    53: (
        "Layers that a nested `tf.function` calls are never trained if the model was not built "
        "before: `fit` uses the trace that built them, in which the initial weights are "
        "constants. After a stateless call, statistics are never updated.",
        "Each forward pass has its own traces of nested functions, in training, evaluation and "
        "export.",
    ),
    54: (
        "On several replicas, a variable that is created in a traced function, such as in a "
        "model's `build`, can't be initialized (`UnliftableError`).",
        "Variables are created eagerly, with the same initial values, bit for bit, on any number "
        "of replicas.",
    ),
    55: (
        "On a CPU, if TensorFlow estimates that a step needs over 205 MB, it adds up three "
        "gradients and more in the order in which they come. The same step gives other bits each "
        "time, with op determinism, too.",
        "The trainer's steps add gradients in the order of the graph. The same step gives the same "
        "bits.",
    ),
    56: (
        "Keras computes a cross-entropy of the logits only if it comes directly from softmax or "
        "sigmoid. After a `tf.function`, a copy or a concatenation, it clips probabilities at "
        "1e-7. No example's loss is over 16 then, and none there has a gradient.",
        "Evaluation, and a loss of the whole batch on several replicas, use the logits.",
    ),
    39: (
        "A rematerialised block with Dropout draws another mask when the backward pass runs it "
        "again, so that the gradient is not that of the loss.",
        "It draws the seeds of the forward pass again. Random ops that can't repeat their numbers "
        "are refused there, by name.",
    ),
    37: (
        "Under several replicas, each tensor of a batch is cut by its own first dimension, class "
        "weights and anchors too.",
        "Where first dimensions differ, `BatchLayout` says what an example is and which tensors "
        "are whole. Nothing is cut without it: a `DataError` names the tensors.",
    ),
    38: (
        "Two strategies on CPUs in one process use the same collectives. Training under the second "
        "one fails if it has another size or other variables.",
        "`make_strategy` gives strategies of any size that work side by side.",
    ),
}


def promises() -> dict[int, list[tuple[str, str, bool]]]:
    """Finds the tests of each statement.

    Returns:
      `{statement: [(file, test, whether it shows a fault of upstream)]}`.
    """
    found: dict[int, list[tuple[str, str, bool]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        whole = "upstream" in path.read_text() and any(
            isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])
            for node in tree.body
        )
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = [ast.unparse(one) for one in node.decorator_list]
            upstream = whole or any(one.startswith("pytest.mark.upstream") for one in marks)
            for one in node.decorator_list:
                if ast.unparse(one).startswith("pytest.mark.promise(") and isinstance(
                    one, ast.Call
                ):
                    for number in one.args:
                        row = (path.relative_to(ROOT).as_posix(), node.name, upstream)
                        found.setdefault(int(ast.unparse(number)), []).append(row)
    return found


def table() -> str:
    """Returns the text of docs/correctness.md.

    Raises:
      SystemExit: A test is marked with a statement that doesn't exist.
    """
    found = promises()
    unknown = set(found) - set(STATEMENTS)
    if unknown:
        raise SystemExit(f"Tests are marked with unknown statements: {sorted(unknown)}")
    lines = [
        "# Known faults of TensorFlow and Keras, and the tests that show them",
        "",
        "The first column describes TensorFlow 2.21 and Keras 3.15. The second column describes",
        "tfloss. *Shown* links to tests in which plain TensorFlow or Keras has the fault; such a",
        "test fails when upstream changes. *Held* links to tests that tfloss behaves as described.",
        "`python docs/correctness.py` writes this page from the marks of the tests.",
        "",
        "| | TensorFlow / Keras | tfloss | tests |",
        "| --: | --- | --- | --- |",
    ]
    for number, (wrong, right) in sorted(STATEMENTS.items()):
        rows = found.get(number, [])
        shown = [_link(file, name) for file, name, upstream in rows if upstream]
        held = [_link(file, name) for file, name, upstream in rows if not upstream]
        tests = [f"*shown:* {', '.join(shown)}"] * bool(shown)
        tests += [f"*held:* {', '.join(held)}"] * bool(held)
        lines.append(f"| {number} | {wrong} | {right} | {'<br>'.join(tests)} |")
    return "\n".join(lines) + "\n"


def _link(file: str, name: str) -> str:
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"


if __name__ == "__main__":
    (ROOT / "docs" / "correctness.md").write_text(table())
