"""Messages of errors."""

import math

import pytest

from tfloss.errors import NonFiniteLossError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"box": NAN, "kl": 1.0, "total": NAN}, "'box'"),
        ({"box": NAN, "kl": INF, "total": NAN, "gradient_norm": NAN}, "'box', 'kl'"),
        ({"box": 3e38, "kl": 3e38, "total": INF, "gradient_norm": NAN}, "'total'"),
        ({"box": 1.0, "total": 1.0, "gradient_norm/d": INF}, "'gradient_norm/d'"),
    ],
)
def test_the_message_names_the_loss_at_fault_and_not_its_consequences(values, named):
    error = NonFiniteLossError(7, values)

    assert str(error).startswith(f"Loss {named} is not finite at step 7 (")
    assert error.losses == values
