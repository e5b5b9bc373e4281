"""A small conv net on Fashion-MNIST: 60,000 images of garments, 10 classes.

    python examples/fashion/train.py --config=configs/fashion.py --workdir=runs/fashion

Result: 91.8 % of the 10,000 test images (seeds 0 to 2: 91.7 to 92.1 %).
It was measured with the decay of an earlier version, which ended 100 steps after the run.
Time: 3.3 minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config. --config.name=value overrides a value."""
    config = ConfigDict()
    config.data_dir = "data"  # directory of TFDS
    config.batch_size = 128
    config.steps = 3_000
    config.eval_every = 1_000
    config.representation = "sparse"  # or "one_hot", with mixup
    config.net = ConfigDict({"width": 16, "dropout": 0.2})
    config.application = ConfigDict()  # a model of keras.applications, in place of net
    config.optimizer = ConfigDict({"learning_rate": 3e-3, "weight_decay": 1e-2})
    return config
