"""How much of the labels a linear classifier finds in the features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


class LinearProbe:
    """Trained on the features of the training pictures, tested on the others. A metric.

    A batch has `"label"` [n] and `"tests"`, bool [n]; the predictions have `"features"` [n, k].
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self._batches = []

    def update(self, batch, predictions):
        self._batches.append((predictions["features"], batch["label"], batch["tests"]))

    def result(self):
        features, label, tests = (np.concatenate(each) for each in zip(*self._batches, strict=True))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
        probe.fit(features[~tests], label[~tests])
        return float(probe.score(features[tests], label[tests]))
