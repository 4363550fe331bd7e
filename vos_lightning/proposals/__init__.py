"""Object proposals: boxes with masks, found by a detector or made from ground truth, kept on disk."""
