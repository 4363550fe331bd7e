"""Backbones: image in, feature pyramid out; each owns its input statistics."""
