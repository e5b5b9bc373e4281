"""The detector on tree crowns in aerial images, a small data set annotated by hand.

    pip install --no-deps --target build/deepforest deepforest==2.1.0
    PYTHONPATH=build/deepforest python examples/detector/train.py --config=configs/tree_crowns.py \
        --workdir=runs/tree_crowns

Result: AP50 0.281 (seeds 0 to 2: 0.260 to 0.313) on 72 tiles of another site.
It was measured with the decay of an earlier version, which ended 100 steps after the run.
Time: 4.7 minutes on 2 CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config. --config.name=value overrides a value."""
    config = ConfigDict()
    config.dataset = "tree_crowns"
    config.data_dir = "data"
    config.batch_size = 8
    config.steps = 1_500
    config.eval_every = 250
    config.max_boxes = 16
    config.cache = True
    config.mirror = ("columns", "rows", "diagonal")  # aerial images have no up
    config.jitter = 1.0  # lighting and sharpness differ between the sites
    config.model = ConfigDict()
    config.model.image_size = (128, 128)
    config.model.anchor_sizes = ((14, 20), (28, 40), (56, 80))
    config.model.width = 32
    config.model.masks = False
    config.model.hard_examples = False
    config.model.detections = 30
    config.optimizer = ConfigDict({"learning_rate": 1e-3, "weight_decay": 1e-2, "clip_norm": 5.0})
    return config
