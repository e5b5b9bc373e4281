"""The models of published_models.py: each with a batch of random data, and how to compile it.

Models are built with random weights and small images. Those of KerasHub are a few layers deep.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

CLASSES, BATCH = 5, 4
CLASSIFIER = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


@dataclasses.dataclass
class Recipe:
    """A model and its data.

    Attributes:
      model: The model, not compiled by the script yet.
      batch: `(x, y)`, `(x, y, sample_weight)`, or `(x,)`.
      compiled: Arguments of `compile`, without the optimizer.
      outputs: Renames the outputs of the export; None: they keep their names.
    """

    model: Any
    batch: tuple[Any, ...]
    compiled: dict[str, Any]
    outputs: Callable[[Any], Any] | None = None


def images(size: int) -> Any:
    """Random images."""
    return np.random.rand(BATCH, size, size, 3).astype(np.float32)


def labels(*shape: int) -> Any:
    """Random classes."""
    return np.random.randint(0, CLASSES, [BATCH, *shape]).astype(np.int32)


# The smallest images that the models accept, or 32.
APPLICATIONS = {
    "ConvNeXtSmall": 32,
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "DenseNet169": 32,
    "EfficientNetB0": 32,
    "EfficientNetB1": 32,
    "EfficientNetB2": 32,
    "EfficientNetV2B0": 32,
    "EfficientNetV2B1": 32,
    "EfficientNetV2B2": 32,
    "EfficientNetV2S": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Large": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet101": 32,
    "ResNet101V2": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "VGG19": 32,
    "Xception": 71,
}


def application(name: str) -> Recipe:
    """A classifier of keras.applications."""
    size = APPLICATIONS[name]
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(size, size, 3), classes=CLASSES)
    return Recipe(model, (images(size), labels()), CLASSIFIER)


def resnet(size: int | None) -> Any:
    """A small ResNet."""
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(size, size, 3),
    )


def resnet_classifier() -> Recipe:
    """ResNetImageClassifier."""
    import keras_hub

    model = keras_hub.models.ResNetImageClassifier(
        backbone=resnet(32), num_classes=CLASSES, activation="softmax"
    )
    return Recipe(model, (images(32), labels()), CLASSIFIER)


def vit_classifier() -> Recipe:
    """ViTImageClassifier, with dropout."""
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout_rate=0.1,
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone=backbone, num_classes=CLASSES, activation="softmax"
    )
    return Recipe(model, (images(32), labels()), CLASSIFIER)


def deeplab() -> Recipe:
    """DeepLabV3ImageSegmenter."""
    import keras_hub

    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=resnet(64),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12, 18],
        upsampling_size=4,
        image_shape=(64, 64, 3),
    )
    model = keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=backbone, num_classes=CLASSES, activation="softmax"
    )
    return Recipe(model, (images(64), labels(64, 64)), CLASSIFIER)


def basnet() -> Recipe:
    """BASNetImageSegmenter, whose compute_loss runs the backbone again."""
    import keras_hub

    backbone = keras_hub.models.BASNetBackbone(
        image_encoder=resnet(None), num_classes=1, image_shape=(64, 64, 3)
    )
    y = np.random.randint(0, 2, [BATCH, 64, 64, 1]).astype(np.float32)
    compiled = {"loss": keras.losses.BinaryCrossentropy(), "metrics": ["mae"]}
    model = keras_hub.models.BASNetImageSegmenter(backbone=backbone)
    return Recipe(model, (images(64), y), compiled)


def boxes(form: str) -> dict[str, Any]:
    """Three boxes per image of 128 x 128, corners or relative centres, and their classes."""
    corner = np.random.rand(BATCH, 3, 2) * 64
    size = 8 + np.random.rand(BATCH, 3, 2) * 48
    if form == "centre":
        found = np.concatenate([corner + size / 2, size], -1) / 128
    else:
        found = np.concatenate([corner, corner + size], -1)
    return {"boxes": found.astype(np.float32), "labels": labels(3)}


def retinanet() -> Recipe:
    """RetinaNetObjectDetector, whose compute_loss matches boxes to anchors."""
    import keras_hub

    anchors = keras_hub.layers.AnchorGenerator(
        bounding_box_format="yxyx",
        min_level=3,
        max_level=5,
        num_scales=2,
        aspect_ratios=[1.0],
        anchor_size=4.0,
    )
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=resnet(128), min_level=3, max_level=5, use_p5=False
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=CLASSES,
        bounding_box_format="yxyx",
        anchor_generator=anchors,
    )
    return Recipe(model, (images(128), boxes("yxyx")), {})  # compile() has its own losses


def d_fine() -> Recipe:
    """DFineObjectDetector, whose compute_loss has a Hungarian matcher and twenty terms."""
    import keras_hub

    encoder = keras_hub.models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[
            [8, 8, 16, 1, 3, 3],
            [16, 8, 32, 1, 3, 3],
            [32, 16, 64, 2, 3, 5],
            [64, 32, 128, 1, 3, 5],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 2, 1],
        hidden_sizes=[16, 32, 64, 128],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(128, 128, 3),
        out_features=["stage3", "stage4"],
    )
    backbone = keras_hub.models.DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=CLASSES,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=20,
        anchor_image_size=(128, 128),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[64, 128],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        seed=0,
        image_shape=(128, 128, 3),
        out_features=["stage3", "stage4"],
    )
    model = keras_hub.models.DFineObjectDetector(
        backbone=backbone, num_classes=CLASSES, bounding_box_format="yxyx"
    )
    return Recipe(model, (images(128), boxes("centre")), {})


def sam() -> Recipe:
    """SAMImageSegmenter. Its own `fit` only raises an error."""
    import keras_hub

    size = 128
    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=64,
        num_heads=4,
        global_attention_layer_indices=[1],
        patch_size=16,
        num_output_channels=8,
        window_size=2,
        image_shape=(size, size, 3),
    )
    prompts = keras_hub.layers.SAMPromptEncoder(
        hidden_size=8,
        image_embedding_size=(8, 8),
        input_image_size=(size, size),
        mask_in_channels=16,
    )
    decoder = keras_hub.layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=8,
        intermediate_dim=32,
        num_heads=2,
        embedding_dim=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
    )
    backbone = keras_hub.models.SAMBackbone(
        image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder
    )
    x = {
        "images": images(size),
        "points": np.float32(np.random.rand(BATCH, 1, 2) * size),
        "labels": np.ones([BATCH, 1], np.float32),
        "boxes": np.float32(np.random.rand(BATCH, 1, 2, 2) * size),
        "masks": np.zeros([BATCH, 0, size, size, 1], np.float32),
    }
    y = {
        "masks": np.random.randint(0, 2, [BATCH, 4, 32, 32]).astype(np.float32),
        "iou_pred": np.random.rand(BATCH, 4).astype(np.float32),
    }
    loss = {"masks": keras.losses.BinaryCrossentropy(from_logits=True), "iou_pred": "mse"}
    return Recipe(
        keras_hub.models.SAMImageSegmenter(backbone=backbone),
        (x, y),
        {"loss": loss, "loss_weights": {"masks": 20.0, "iou_pred": 1.0}, "metrics": {}},
        # An input is named "masks", too.
        outputs=lambda found: {"predicted_masks": found["masks"], "iou": found["iou_pred"]},
    )


def tokens() -> dict[str, Any]:
    """Sequences of 8 tokens, the last two of which are padding."""
    return {
        "token_ids": np.random.randint(0, 20, [BATCH, 8]).astype(np.int32),
        "padding_mask": (np.arange(8)[None].repeat(BATCH, 0) < 6).astype(np.int32),
    }


SMALL = {"vocabulary_size": 20, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}


def bert_backbone() -> Any:
    """A BERT of two layers."""
    import keras_hub

    return keras_hub.models.BertBackbone(**SMALL, num_heads=2, max_sequence_length=8)


def bert_classifier() -> Recipe:
    """BertTextClassifier."""
    import keras_hub

    model = keras_hub.models.BertTextClassifier(
        backbone=bert_backbone(), num_classes=CLASSES, activation="softmax"
    )
    x = tokens() | {"segment_ids": np.zeros([BATCH, 8], np.int32)}
    return Recipe(model, (x, labels()), CLASSIFIER)


def bert_masked_lm() -> Recipe:
    """BertMaskedLM. The weights of the masked positions are sample weights."""
    import keras_hub

    model = keras_hub.models.BertMaskedLM(backbone=bert_backbone())
    x = tokens() | {"segment_ids": np.zeros([BATCH, 8], np.int32)}
    x["mask_positions"] = np.array([[1, 4]] * BATCH, np.int32)
    y = np.random.randint(0, 20, [BATCH, 2]).astype(np.int32)
    weight = np.array([[1.0, 1.0], [1.0, 0.0]] * (BATCH // 2), np.float32)
    return Recipe(model, (x, y, weight), language_model())


def language_model() -> dict[str, Any]:
    """Loss and metric of language models."""
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "weighted_metrics": ["accuracy"],
    }


def causal_lm(model: Any) -> Recipe:
    """A model that predicts the next token. Padding has no weight."""
    x = tokens()
    y, weight = np.roll(x["token_ids"], -1, 1), x["padding_mask"].astype(np.float32)
    return Recipe(model, (x, y, weight), language_model())


def gpt2() -> Recipe:
    """GPT2CausalLM."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(**SMALL, num_heads=2, max_sequence_length=8)
    return causal_lm(keras_hub.models.GPT2CausalLM(backbone=backbone))


def mixtral() -> Recipe:
    """MixtralCausalLM, whose router of experts adds a loss."""
    import keras_hub

    backbone = keras_hub.models.MixtralBackbone(
        **SMALL, num_query_heads=2, num_key_value_heads=1, num_experts=4
    )
    return causal_lm(keras_hub.models.MixtralCausalLM(backbone=backbone))


def siglip() -> Recipe:
    """SigLIPBackbone, whose compute_loss makes its own labels: each image has its own text."""
    import keras_hub

    vision = keras_hub.models.SigLIPVisionEncoder(
        image_shape=(32, 32, 3),
        patch_size=8,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        intermediate_dim=32,
    )
    text = keras_hub.models.SigLIPTextEncoder(
        **SMALL, embedding_dim=16, num_heads=2, max_sequence_length=8
    )
    model = keras_hub.models.SigLIPBackbone(vision_encoder=vision, text_encoder=text)
    x = {"images": images(32), "token_ids": tokens()["token_ids"]}
    return Recipe(model, (x,), {})


HUB: dict[str, Callable[[], Recipe]] = {
    "BASNetImageSegmenter": basnet,
    "BertMaskedLM": bert_masked_lm,
    "BertTextClassifier": bert_classifier,
    "DeepLabV3ImageSegmenter": deeplab,
    "DFineObjectDetector": d_fine,
    "GPT2CausalLM": gpt2,
    "MixtralCausalLM": mixtral,
    "ResNetImageClassifier": resnet_classifier,
    "RetinaNetObjectDetector": retinanet,
    "SAMImageSegmenter": sam,
    "SigLIPBackbone": siglip,
    "ViTImageClassifier": vit_classifier,
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    **{name: functools.partial(application, name) for name in APPLICATIONS},
    **HUB,
}
