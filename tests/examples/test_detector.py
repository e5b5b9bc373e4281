"""The detector: the same on any number of replicas, and from start to SavedModel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

import tfloss
from tests.examples.harness import (
    assert_same,
    load,
    load_without_tfloss,
    results,
    run,
    train_a_little,
    train_resume_and_export,
)
from tfloss.detection.boxes import iou
from tfloss.detection.masks import rasterize
from tfloss.forward.context import forward_context

SMALL = {"image_size": (32, 32), "anchor_sizes": ((8,), (12,), (16,)), "width": 16, "proposals": 8}


def _batch(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Bright squares on noise; 0 to 3 of them, so that positives differ between replicas."""
    random = np.random.RandomState(seed)
    batch = {
        "image": random.rand(n, 32, 32, 1).astype(np.float32) * 0.2,
        "id": random.randint(0, 2**40, n),
        "boxes": np.zeros([n, 3, 4], np.float32),
        "labels": np.full([n, 3], -1),
        "crowd": np.zeros([n, 3], bool),
        "polygons": np.zeros([n, 3, 6, 2], np.float32),
    }
    for i in range(n):
        for k in range((0, 3, 1, 1)[i % 4]):
            y, x, side = 10 * k, random.randint(0, 20), random.randint(7, 11)
            batch["image"][i, y : y + side, x : x + side] += 0.6
            batch["boxes"][i, k] = y, x, y + side, x + side
            batch["labels"][i, k] = k % 2
            corners = [(y, x), (y, x + side), (y + side, x + side), (y + side, x)]
            batch["polygons"][i, k] = [*corners, corners[-1], corners[-1]]
    return batch


def _make(**options):
    return lambda: load("detector/model.py").Detector(2, **{**SMALL, **options})


def _data(steps: int) -> tf.data.Dataset:
    batches = [_batch(8, seed) for seed in range(steps)]
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    return tf.data.Dataset.from_tensor_slices(stacked)


@pytest.fixture(scope="module")
def on_one_replica():
    """The losses and weights after two steps on one replica; no test changes them."""
    return train_a_little(_make(), _data(2), tf.distribute.get_strategy(), steps=2)


# Quick siblings: the loop by hand below, and the same on two replicas in test_penguins.py and
# test_moco.py. The operations of the detector are compared with and without XLA in tests/detection.
@pytest.mark.parametrize(
    ("count", "jit"),
    [
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(4, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],
)
def test_losses_and_weights_are_those_of_one_replica(count, jit, replicas, on_one_replica):
    other = train_a_little(_make(), _data(2), replicas(count), steps=2, jit=jit)
    assert set(on_one_replica[0]) == {
        "rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "total",
    }  # fmt: skip
    assert_same(on_one_replica, other)


def test_losses_and_weights_are_those_of_a_loop_by_hand(on_one_replica):
    """Sampling depends on the step, so a loop that stays at step 0 gives other weights."""

    def by_hand(counts_steps: bool):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model, optimizer = _make()(), keras.optimizers.SGD(0.05)
        for step, batch in enumerate(_data(2)):
            seen = tf.constant(step if counts_steps else 0, tf.int64)
            with tf.GradientTape() as tape, forward_context(seen, recording=False):
                losses = model(batch, training=True)
                total = sum(tf.nest.flatten(losses))
            gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
            optimizer.apply(gradients, model.trainable_variables)
        flat = {f"{group}/{name}": v for group, of in losses.items() for name, v in of.items()}
        named = {name: float(v) for name, v in flat.items()}
        return {**named, "total": float(total)}, [w.numpy() for w in model.weights]

    assert_same(on_one_replica, by_hand(counts_steps=True))
    with pytest.raises(AssertionError):
        assert_same(on_one_replica, by_hand(counts_steps=False))


@pytest.mark.slow  # test_the_hardest_are_those_of_the_highest_loss is quick
def test_hard_examples_are_the_same_on_two_replicas(replicas):
    one = train_a_little(_make(hard_examples=True, masks=False), _data(3), replicas(1))
    assert_same(one, train_a_little(_make(hard_examples=True, masks=False), _data(3), replicas(2)))


def test_the_hardest_are_those_of_the_highest_loss():
    model = _make(hard_examples=True)()
    logits = tf.constant([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0], [99.0, 0.0, -99.0]]])
    model.align = lambda features, regions, size: None
    model.box_head = lambda regions: (logits, None)
    hard = model.difficulty(None, None, tf.constant([[0, 0, 1, 2]])).numpy()[0]
    assert np.argsort(hard).tolist() == [0, 2, 1, 3]
    assert 0 <= hard.min() and hard.max() < 1


@pytest.mark.slow
def test_four_micro_batches_are_one_batch(replicas):
    one = train_a_little(_make(masks=False), _data(3), replicas(1), clip_norm=1.0)
    parts = _data(3).unbatch().batch(2)
    four = train_a_little(_make(masks=False), parts, replicas(1), clip_norm=1.0, accumulate=4)
    assert_same(one, four)


def test_inference_needs_an_image_only_and_pads():
    model = _make(detections=7)()
    found = model({"image": _batch(3)["image"]}, training=False)
    assert {k: v.shape for k, v in found.items()} == {
        "boxes": (3, 7, 4),
        "scores": (3, 7),
        "labels": (3, 7),
        "masks": (3, 7, 14, 14),
    }
    empty = found["scores"].numpy() == 0
    assert not found["boxes"].numpy()[empty].any()
    assert found["boxes"].numpy().max() <= 32


@pytest.mark.slow
def test_it_learns_where_the_squares_are(replicas):
    model = _make()()
    trainer = tfloss.Trainer(model, tf.keras.optimizers.Adam(3e-3), clip_norm=5.0)
    batch = _batch(8)
    trainer.train(tf.data.Dataset.from_tensors(batch).repeat(), 120)
    found = model({"image": batch["image"]}, training=False)
    for i in range(8):
        there = batch["boxes"][i].any(-1)
        sure = found["scores"][i].numpy() > 0.5
        assert sure.sum() == there.sum()
        if there.any():
            overlap = iou(batch["boxes"][i][there], found["boxes"][i].numpy()[sure]).numpy()
            assert overlap.max(1).min() > 0.7


# Input


def test_mirroring_keeps_boxes_polygons_and_pixels_together():
    mirror = load("detector/input.py").mirror
    example = {key: tf.constant(value[1]) for key, value in _batch(2).items()}
    seen = set()
    for coins in np.ndindex(2, 2, 2):
        turned = mirror(
            example, tf.constant(np.array(coins, bool)), ("columns", "rows", "diagonal")
        )
        image = turned["image"].numpy()[..., 0]
        seen.add(image.tobytes())
        inside = rasterize(turned["polygons"], np.tile([0.0, 0.0, 32.0, 32.0], [3, 1]), 32).numpy()
        np.testing.assert_array_equal(inside.any(0), image > 0.5)
        for box, mask in zip(turned["boxes"].numpy(), inside, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            np.testing.assert_allclose(box, [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    assert len(seen) == 8
    same = mirror(example, tf.constant([True] * 3), ("rows",))
    np.testing.assert_array_equal(same["image"], example["image"][::-1])
    padded = {key: tf.constant(value[2]) for key, value in _batch(3).items()}
    assert not mirror(padded, [True] * 3, ("columns",))["boxes"][1:].numpy().any()


def test_jitter_changes_light_and_sharpness_but_not_where_things_are():
    jitter = load("detector/input.py").jitter
    image = tf.constant(_batch(2)["image"][1])
    middle = np.full([7], 0.5, np.float32)
    np.testing.assert_allclose(jitter(image, middle, 1.0), image, atol=1e-6)
    np.testing.assert_array_equal(jitter(image, middle * 0, 0.0), image)
    bright, soft = middle.copy(), middle.copy()
    bright[4], soft[5] = 1.0, 1.0
    np.testing.assert_allclose(jitter(image * 0.5, bright, 1.0), image * 0.5 + 0.15, atol=1e-6)
    smooth = jitter(image, soft, 1.0).numpy()
    assert abs(smooth.mean() - image.numpy().mean()) < 0.01
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.5 * np.abs(np.diff(image, axis=0)).mean()


def _coco(data_dir) -> None:
    """A tiny data set that TFDS's own coco/2017 reads: 6 pictures of different sizes."""
    features = tfds.builder("coco/2017", data_dir=data_dir).info.features

    def examples():
        for i in range(6):
            height, width = (40, 80) if i % 2 else (64, 48)
            image = np.full([height, width, 3], 30 * i, np.uint8)
            boxes = [[0.25, 0.25, 0.75, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]][: i % 4]
            yield {
                "image": image,
                "image/filename": f"{i}.jpg",
                "image/id": 1_000 + i,
                "objects": [
                    {
                        "area": 100,
                        "bbox": tfds.features.BBox(*box),
                        "id": 10 * i + k,
                        "is_crowd": k == 2,
                        "label": 17 + k,
                    }
                    for k, box in enumerate(boxes)
                ],
            }

    tfds.dataset_builders.store_as_tfds_dataset(
        "coco",
        "1.1.0",
        features=features,
        config="2017",
        data_dir=data_dir,
        split_datasets={
            "train": list(enumerate(examples())),
            "validation": list(enumerate(examples())),
        },
    )


def test_coco_is_resized_padded_and_cut(tmp_path):
    _coco(tmp_path)
    config = ConfigDict(
        {
            "dataset": "coco/2017",
            "data_dir": str(tmp_path),
            "batch_size": 6,
            "max_boxes": 2,
            "cache": False,
            "mirror": ("columns",),
            "jitter": 1.0,
            "model": {"image_size": (32, 32)},
        }
    )
    train, _, test, names = load("detector/input.py").batches(config, seed=0)
    batch = {key: value.numpy() for key, value in next(iter(test)).items()}

    assert len(names) == 80
    assert next(iter(train))["image"].shape == (6, 32, 32, 3)
    assert set(batch) == {"image", "id", "boxes", "labels", "crowd"}
    first, third = (np.flatnonzero(batch["id"] == 1_000 + i)[0] for i in (1, 3))
    # 40 x 80 becomes 16 x 32, and the lower half is padding.
    np.testing.assert_allclose(batch["boxes"][first], [[4, 8, 12, 16], [0, 0, 0, 0]])
    assert batch["image"][first, :16].min() > 0.1 and not batch["image"][first, 16:].any()
    np.testing.assert_array_equal(batch["labels"][first], [17, -1])
    np.testing.assert_array_equal(batch["labels"][third], [17, 18])  # of three


# The script


@pytest.mark.slow  # quick siblings: from start to SavedModel in test_digits.py and test_penguins.py
def test_one_run_trains_evaluates_and_exports(tmp_path):
    flags = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=16", "--max_steps=1"]

    printed = run("detector/train.py", "detector", tmp_path / "run", *flags)

    _assert_complete(results(printed), tmp_path / "run" / "export")


@pytest.mark.slow
def test_from_start_to_saved_model(tmp_path):
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.width=16"]

    path, found = train_resume_and_export("detector/train.py", "detector", tmp_path, small, 2)

    _assert_complete(found, path)


def _assert_complete(found, path):
    """Results have boxes and masks, and the SavedModel at `path` runs on three images."""
    assert {"test/coco/box/AP50", "test/coco/mask/AP50"} < set(found)
    shapes = load_without_tfloss(path, {"image": ([3, 64, 64, 1], "float32")})
    assert shapes["boxes"] == [3, 20, 4] and shapes["masks"] == [3, 20, 14, 14]


@pytest.mark.slow
def test_coco_trains(tmp_path):
    """Quick siblings: the test of one run above, and `test_coco_is_resized_padded_and_cut`."""
    _coco(tmp_path / "data")
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.dataset=coco/2017"]
    small += ["--config.model.image_size=(64, 64)", "--config.model.width=16"]
    small += ["--config.batch_size=2", "--config.model.masks=False", "--max_steps=2"]
    found = results(run("detector/train.py", "detector", tmp_path / "run", *small))
    assert 0 <= found["test/coco/box/AP"] <= 1


def test_coco_that_is_not_there_says_what_to_do(tmp_path):
    config = ConfigDict({"dataset": "coco/2017", "data_dir": str(tmp_path)})
    with pytest.raises(tfloss.errors.DataError, match="tfds build coco/2017"):
        load("detector/input.py").batches(config, seed=0)


@pytest.mark.slow
def test_it_reaches_90_percent(tmp_path):
    flags = [f"--config.data_dir={tmp_path / 'data'}"]
    found = results(run("detector/train.py", "detector", tmp_path / "run", *flags))
    assert found["test/coco/box/AP50"] >= 0.9
    assert found["test/coco/mask/AP50"] >= 0.85
