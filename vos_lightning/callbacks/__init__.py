"""Lightning callbacks: prediction files, pictures of the validation, training speed."""

from vos_lightning.callbacks.predictions import PredictionWriter
from vos_lightning.callbacks.throughput import Throughput
from vos_lightning.callbacks.visuals import EvaluationPictures

__all__ = ["EvaluationPictures", "PredictionWriter", "Throughput"]
