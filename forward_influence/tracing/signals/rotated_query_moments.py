"""Mean and covariance of a layer's queries as attention sees them, after the rotary embedding (arXiv:2503.02812)."""

from __future__ import annotations

from forward_influence.tracing.signals.base import Recording, Setting
from forward_influence.tracing.signals.query_moments import MomentsRecording, QueryMoments
from forward_influence.tracing.signals.registry import register


class RotatedQueryMoments(QueryMoments):
    """Per full layer, moments of the queries of tokens from the 5th on; for models without a rotary embedding too."""

    name = "rotated_query_moments"
    about = "mean and covariance of the queries as attention sees them"
    rotation = False

    def recording(self, number: int, setting: Setting) -> Recording:
        """Running sums in float64."""
        return MomentsRecording(setting)


register(RotatedQueryMoments())
