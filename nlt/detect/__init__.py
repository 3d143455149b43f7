"""From features or predictions to wrong labels; from scores to a mask and its quality."""

from nlt.detect.acts import Act, Acted, act_on
from nlt.detect.errors import LabelErrors, checked_labels, find_label_errors
from nlt.detect.joint import confident_joint
from nlt.detect.leave_one_out import LeaveOneOut, choose_features, leave_one_out
from nlt.detect.masks import Rounding, auc, mask_quality, number_kept, ranking_quality, smallest
from nlt.detect.mixture import p_small
from nlt.detect.posterior import knowing_the_label, log_odds_wrong, true_class
from nlt.detect.ranked import ranked_by
from nlt.detect.rate import Rate, estimate_rates
from nlt.detect.scores import (
    area_under_the_margin,
    forgetting_events,
    margin,
    o2u_score,
    self_confidence,
    wrong_events,
)
from nlt.detect.transition import Transition, confident_counts, estimate_transition, shrunk

__all__ = [
    "Act",
    "Acted",
    "LabelErrors",
    "LeaveOneOut",
    "Rate",
    "Rounding",
    "Transition",
    "act_on",
    "area_under_the_margin",
    "auc",
    "checked_labels",
    "choose_features",
    "confident_counts",
    "confident_joint",
    "estimate_rates",
    "estimate_transition",
    "find_label_errors",
    "forgetting_events",
    "knowing_the_label",
    "leave_one_out",
    "log_odds_wrong",
    "margin",
    "mask_quality",
    "number_kept",
    "o2u_score",
    "p_small",
    "ranked_by",
    "ranking_quality",
    "self_confidence",
    "shrunk",
    "smallest",
    "true_class",
    "wrong_events",
]
