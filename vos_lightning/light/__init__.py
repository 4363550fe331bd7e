"""The small network computed by ONNX Runtime, without PyTorch."""
