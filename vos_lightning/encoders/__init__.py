"""Encoders of what the memory keeps: keys of a frame, values of a frame with its masks."""
