"""Values of label maps that are not objects. This module imports nothing, so that commands without a network start at once."""

IGNORE_LABEL = 255
"""Label-map value of pixels that neither train nor score."""
