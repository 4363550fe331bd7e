"""Decoders: matching maps and a feature pyramid in, logits out."""
