"""Semi-supervised video object segmentation on PyTorch Lightning."""
