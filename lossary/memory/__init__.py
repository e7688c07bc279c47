"""Memory: the only home of state. A memory may stand wherever a hyperparameter is expected."""

from lossary.memory.base import Learned, LearnedReal, Memory, PerSample, RunningFrequency, check_ids, size_of
from lossary.memory.levels import RunningLoss
from lossary.memory.negatives import HardNegatives
from lossary.memory.norms import FeatureNorms
from lossary.memory.streams import Queue, RunningMean, class_slots

__all__ = [
    "FeatureNorms",
    "HardNegatives",
    "Learned",
    "LearnedReal",
    "Memory",
    "PerSample",
    "Queue",
    "RunningFrequency",
    "RunningLoss",
    "RunningMean",
    "check_ids",
    "class_slots",
    "size_of",
]
