"""The picture of a watched step can be drawn from any table."""

import io

import matplotlib.image
import pytest

from tests.hooks.test_watch_table import _watched
from tfloss.hooks.watch_picture import draw
from tfloss.hooks.watch_table import WatchTable


@pytest.mark.parametrize("variables", [0, 60])
def test_any_number_of_variables_and_losses(variables):
    norms = [(1.0, 0.5, 2.0), *[(0.0, 0.0, 0.0)] * variables][:variables]
    sizes = []
    for products in ([[4.0, -2.0], [-2.0, 1.0]], [[1.0]]):
        table = WatchTable(3, [_watched(products, norms=norms or [(0.0, 0.0, 0.0)])])
        image = matplotlib.image.imread(io.BytesIO(draw(table)), format="png")
        assert image[..., :3].std() > 0.02  # it isn't blank
        sizes.append(image.shape[1])
    assert sizes[0] > sizes[1]  # without losses there are two panels
