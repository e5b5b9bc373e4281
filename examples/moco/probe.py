"""The accuracy of a linear classifier on frozen features."""

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


class LinearProbe:
    """A metric: the test accuracy of a logistic regression on the features.

    A batch has `"label"` [n] and `"tests"`, bool [n], which is true for the images that the
    regression is tested on, and not fitted to. The predictions have `"features"` [n, k].
    """

    mode = "max"

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets all features."""
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(
        self, batch: Mapping[str, np.ndarray], predictions: Mapping[str, np.ndarray]
    ) -> None:
        """Adds the features and labels of a batch."""
        self._batches.append((predictions["features"], batch["label"], batch["tests"]))

    def result(self) -> float:
        """Fits the classifier and returns its accuracy."""
        features, label, tests = (np.concatenate(each) for each in zip(*self._batches, strict=True))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
        probe.fit(features[~tests], label[~tests])
        return float(probe.score(features[tests], label[tests]))
