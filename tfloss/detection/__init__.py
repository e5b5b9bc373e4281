"""Parts of detectors: boxes, anchors, matching, sampling, suppression, RoIAlign, masks.

Pure functions of tensors with static shapes: they compile under XLA, and pad where there are fewer
objects than places. A box is (ymin, xmin, ymax, xmax), in pixels; y grows downwards, and pixel i
covers [i, i + 1). A box whose height or width is 0 is padding.
"""
