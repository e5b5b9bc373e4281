"""Building blocks for detectors: boxes, anchors, matching, sampling, NMS, RoIAlign, masks.

The traced functions are pure functions of tensors with static shapes, so they compile under XLA;
unused places are padded. A box is (ymin, xmin, ymax, xmax) in pixels; y grows downwards, and
pixel i covers the interval [i, i + 1). A box with zero height or width is padding.
"""
