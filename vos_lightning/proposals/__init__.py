"""Object proposals: boxes with masks, from a detector or from ground truth, stored on disk."""
