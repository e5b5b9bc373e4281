"""What the answers promise, checked at the end."""

import numpy as np


def check(page):
    found = {"probabilities": np.eye(10)[[0, 1, 1]]}
    image = page["confusion"]({"label": np.array([0, 0, 1])}, found)
    assert image.shape == (1, 160, 160, 1)
    assert (image[0, 0, 0, 0], image[0, 0, 16, 0], image[0, 16, 16, 0]) == (0.5, 0.5, 1.0)
    assert len(page["scores"]) == 3 and page["second"].step == page["best_step"] + 2
    assert np.isclose(page["second"].optimizer.learning_rate, 1e-4)
    predicted = page["second"].model({"image": page["images"][:3]})["probabilities"]
    np.testing.assert_allclose(page["probabilities"], predicted, atol=1e-5)
