"""MobileNet of keras.applications, unchanged, on Fashion-MNIST.

    python examples/fashion/train.py --config=configs/fashion_mobilenet.py --workdir=runs/mobilenet

It trains from scratch. `--config.application.weights=imagenet` starts from weights that Keras
downloads.

Result: 81.7 % of the test images (seeds 0 to 2: 81.1 to 82.2 %).
It was measured with the decay of an earlier version, which ended 100 steps after the run.
Time: 2.2 minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the config. --config.name=value overrides a value."""
    config = ConfigDict()
    config.data_dir = "data"
    config.batch_size = 64
    config.steps = 1_500
    config.eval_every = 500
    config.representation = "sparse"
    config.application = ConfigDict({"name": "MobileNet", "side": 56, "alpha": 0.25})
    config.application.weights = config_dict.placeholder(str)
    config.optimizer = ConfigDict({"learning_rate": 2e-3, "weight_decay": 1e-2})
    return config
