"""Values of label maps that are no object. Nothing is imported here, so that commands without a network start at once."""

IGNORE_LABEL = 255
"""Label-map value of pixels that neither train nor score."""
