"""A report of a run before training, as text and as JSON."""

import json

from tfloss.inspect.report import (
    Finding,
    InspectedLoss,
    InspectedVariable,
    Inspection,
    StepCost,
    aligned,
    short_form,
)

REPORT = Inspection(
    model="net",
    parameters=1_234,
    trainable_parameters=1_200,
    groups={"optimizer": "Adam"},
    replicas=2,
    batch_size=None,
    workdir=None,
    losses=(InspectedLoss("box", "net/head", 0.5, "float16", "net.py:3, in call", ("optimizer",)),),
    variables=(InspectedVariable("net/w", (2, 3), "float32", "", False, 1.0, ()),),
    summaries=(),
    state_updates=("net/mean",),
    findings=(Finding("Dynamic shape", "Where", "net.py:4, in call", "Use a mask."),),
    cost=StepCost(1_000, 2_000_000, 3_000_000, 4_000_000, ("loops count as one turn",)),
)


def test_the_text_has_every_part():
    lines = [" ".join(line.split()) for line in str(REPORT).splitlines()]
    assert "parameters 1,234 (1,200 trained)" in lines
    assert (
        "batch unknown size, on 2 replicas" in lines and "workdir none: nothing is saved" in lines
    )
    assert "losses box" in lines and "optimizer Adam" in lines
    assert "memory 3.0 MB of tensors at the peak of a step, predicted" in lines
    assert "up to 4.0 MB in the blocks of the allocator" in lines
    assert "not counted loops count as one turn" in lines
    assert "box net/head 0.5 float16 optimizer net.py:3, in call" in lines
    assert "net/w 2x3 float32 - no - -" in lines
    assert "Dynamic shape: Where (net.py:4, in call). Use a mask." in lines


def test_json_has_the_same():
    found = json.loads(json.dumps(REPORT.to_json()))
    assert found["losses"][0]["line"] == "net.py:3, in call"
    assert found["variables"][0]["shape"] == [2, 3]
    assert found["cost"]["peak_bytes"] == 3_000_000


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == ["  a    bb", "  ccc  d"]


def test_many_losses_and_groups_in_short():
    rows = short_form(
        parameters=2_000,
        trained=1_000,
        losses=[f"l{i}" for i in range(10)],
        groups={"a": "SGD", "b": "Adam"},
        replicas=1,
        batch_size=1_024,
        workdir="runs/a",
    )
    assert rows[1:] == [
        ["losses", "l0, l1, l2, l3, l4, l5, l6, l7 and 2 more"],
        ["optimizer", "a (SGD), b (Adam)"],
        ["batch", "1,024 examples, on 1 replica"],
        ["workdir", "runs/a"],
    ]
