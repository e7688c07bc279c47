"""Space: terms and constraints on features and weights, beside the cost of a prediction."""

from lossary.space.adversarial import smooth_adversarial
from lossary.space.alip import ALIP
from lossary.space.anomaly import angular_centre, knn_anomaly, mean_shifted
from lossary.space.balanced import GroupedCosine, HeadTail, HeadTailLogits, head_tail_loss
from lossary.space.collapse import CenterPull, apart
from lossary.space.cosent import cosent
from lossary.space.ensemble import Ensemble, utility_loss
from lossary.space.ensloss import EnsLoss
from lossary.space.global_contrastive import AdaptiveHeads, BadPairs, GlobalContrastive, ModelAware
from lossary.space.heads import GML, class_similarity, naive_bayes
from lossary.space.mining import mined
from lossary.space.pose import binned_angle, expected_angle
from lossary.space.redundancy import barlow_twins, mixed_barlow_twins
from lossary.space.registration import AdaptiveWeights, local_ncc, smoothness, soft_dice
from lossary.space.sorting import groco, soft_sort
from lossary.space.subclasses import class_temperatures, subclass_contrast, subclasses
from lossary.space.weights import MaxNorm, repulsion

__all__ = [
    "ALIP",
    "GML",
    "AdaptiveHeads",
    "AdaptiveWeights",
    "BadPairs",
    "CenterPull",
    "EnsLoss",
    "Ensemble",
    "GlobalContrastive",
    "GroupedCosine",
    "HeadTail",
    "HeadTailLogits",
    "MaxNorm",
    "ModelAware",
    "angular_centre",
    "apart",
    "barlow_twins",
    "binned_angle",
    "class_similarity",
    "class_temperatures",
    "cosent",
    "expected_angle",
    "groco",
    "head_tail_loss",
    "knn_anomaly",
    "local_ncc",
    "mean_shifted",
    "mined",
    "mixed_barlow_twins",
    "naive_bayes",
    "repulsion",
    "smooth_adversarial",
    "smoothness",
    "soft_dice",
    "soft_sort",
    "subclass_contrast",
    "subclasses",
    "utility_loss",
]
