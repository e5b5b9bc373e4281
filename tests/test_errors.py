"""Messages of errors."""

import math

import pytest

from tfloss.errors import NonFiniteGradient, NonFiniteLossError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"box": NAN, "kl": 1.0, "total": NAN}, "'box'"),
        ({"box": NAN, "kl": INF, "total": NAN}, "'box', 'kl'"),
        ({"box": 3e38, "kl": 3e38, "total": INF}, "'total'"),
    ],
)
def test_the_message_names_the_loss_at_fault_and_not_its_consequences(values, named):
    error = NonFiniteLossError(7, values)

    assert str(error).startswith(f"Loss {named} is not finite at step 7 (")
    assert error.losses == values


def test_the_message_names_groups_losses_and_variables_of_a_bad_gradient():
    gradients = (
        NonFiniteGradient("d", ("real", "fake"), tuple(f"w{i}" for i in range(10))),
        NonFiniteGradient("g", largest=3e25),
        NonFiniteGradient("h"),
    )
    error = NonFiniteLossError(7, {"real": 0.0, "total": 0.0}, gradients=gradients)

    assert str(error) == (
        "The gradient is not finite at step 7, but the losses are (real = 0, total = 0): of loss "
        "'real', 'fake' for 'w0', 'w1', 'w2', 'w3', 'w4', 'w5', 'w6', 'w7' and 2 more (optimizer "
        "group 'd'); of optimizer group 'g' (each loss has a finite gradient, up to 3e+25, but "
        "their sum or norm overflows float32); of optimizer group 'h' (which losses and variables, "
        "is not known). Training stopped before that update, so the weights are those of step 6."
    )
    assert error.gradients == gradients


def test_the_message_says_that_the_weights_are_bad_already():
    error = NonFiniteLossError(7, {"total": NAN}, weights=("dense/kernel",))

    assert "those of step 6. Some of them are not finite: 'dense/kernel'." in str(error)
