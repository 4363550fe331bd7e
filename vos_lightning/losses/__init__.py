"""Losses on label maps and per-frame outputs."""
