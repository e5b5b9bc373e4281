"""One trunk and up to five tasks, some of whose labels are missing."""

from collections.abc import Collection, Mapping

import keras
import tensorflow as tf

import tfloss

layers = keras.layers
TASKS = ("species", "sex", "mass", "isotopes", "reconstruction")


class Penguins(keras.Model):
    """Predicts properties of a penguin from its bill, its flipper and its island.

    A batch is `{"measurements": float32 [n, 3], "island": int [n], "species": int [n], "sex": int
    [n], "mass": float32 [n], "isotopes": float32 [n, 2]}`; unknown values are NaN or -1. Inference
    needs the first two only. It returns the predictions of its tasks: probabilities `"species"`
    [n, 3] and `"sex"` [n, 2], `"mass"` [n] in g, and `"isotopes"` [n, 2] in per mille.

    Args:
      statistics: The (means, standard deviations) of "measurements", "mass" and "isotopes".
      tasks: The tasks to train, some of TASKS.
      uncertainty: Whether to weight the losses by learned variances (Kendall et al. 2018,
        arXiv:1705.07115).
      width: The number of units of the trunk's layers.
      hidden: The fraction of measurements to hide in training, for the reconstruction task.

    Raises:
      ValueError: A task is unknown.
    """

    def __init__(
        self,
        statistics: Mapping[str, tuple[list[float], list[float]]],
        tasks: Collection[str] = TASKS,
        uncertainty: bool = False,
        width: int = 64,
        hidden: float = 0.3,
    ):
        super().__init__(name="penguins")
        if unknown := set(tasks) - set(TASKS):
            raise ValueError(f"Unknown tasks {sorted(unknown)}; there are {TASKS}.")
        self.statistics, self.tasks, self.hidden = statistics, tuple(tasks), hidden
        self.random = keras.random.SeedGenerator(seed=1)
        self.trunk = keras.Sequential([layers.Dense(width, "silu"), layers.Dense(width, "silu")])
        units = {"species": 3, "sex": 2, "mass": 1, "isotopes": 2, "reconstruction": 3}
        self.heads = {task: layers.Dense(units[task], name=task) for task in self.tasks}
        self.log_variance = {}
        if uncertainty:
            for task in self.tasks:
                name = f"log_variance_{task}"
                self.log_variance[task] = self.add_weight(shape=(), initializer="zeros", name=name)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the losses of all tasks in training, and predictions in inference."""
        sizes = self.standard("measurements", batch["measurements"])
        known = ~tf.math.is_nan(sizes)
        seen = known
        if training and "reconstruction" in self.tasks:
            seen &= keras.random.uniform(tf.shape(sizes), seed=self.random) >= self.hidden
        code = self.trunk(
            tf.concat(
                [
                    tf.where(seen, sizes, 0.0),
                    tf.cast(seen, tf.float32),
                    tf.one_hot(batch["island"], 3),
                ],
                -1,
            )
        )
        out: dict[str, tf.Tensor] = {}  # losses in training, predictions in inference

        if "species" in self.tasks:
            logits = self.heads["species"](code)
            out["species"] = (
                cross_entropy(batch["species"], logits) if training else tf.nn.softmax(logits)
            )
        if "sex" in self.tasks:
            logits = self.heads["sex"](code)
            out["sex"] = cross_entropy(batch["sex"], logits) if training else tf.nn.softmax(logits)
        if "mass" in self.tasks:
            mass = self.heads["mass"](code)
            out["mass"] = (
                squared_error(self.standard("mass", batch["mass"][:, tf.newaxis]), mass)
                if training
                else self.original("mass", mass)[:, 0]
            )
        if "isotopes" in self.tasks:
            isotopes = self.heads["isotopes"](code)
            out["isotopes"] = (
                squared_error(self.standard("isotopes", batch["isotopes"]), isotopes)
                if training
                else self.original("isotopes", isotopes)
            )
        if "reconstruction" in self.tasks and training:  # has no predictions
            guess = self.heads["reconstruction"](code)
            out["reconstruction"] = squared_error(tf.where(seen, float("nan"), sizes), guess)

        return self.weighted(out) if training else out

    def weighted(self, losses: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns exp(-s) loss + s / 2 for each task, s = log of a learned variance (eq. 7, 10)."""
        for task, s in self.log_variance.items():
            losses[task] = tf.exp(-s) * losses[task] + s / 2
            tfloss.summary.scalar(f"deviation/{task}", tf.exp(s / 2))
        return losses

    def standard(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Standardises values to mean 0 and standard deviation 1."""
        mean, deviation = self.statistics[name]
        return (values - mean) / deviation

    def original(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Converts standardised values to their original unit."""
        mean, deviation = self.statistics[name]
        return values * deviation + mean


def cross_entropy(label: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the mean cross entropy over the known labels of the global batch."""
    known = label >= 0
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(known, label, 0), logits)
    return tfloss.global_mean(each, known)


def squared_error(target: tf.Tensor, guess: tf.Tensor) -> tf.Tensor:
    """Computes the mean squared error over the known values of the global batch."""
    known = ~tf.math.is_nan(target)
    return tfloss.global_mean((guess - tf.where(known, target, guess)) ** 2, known)
