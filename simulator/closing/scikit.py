"""What scikit-learn asks of a step of its pipelines. It is imported when it asks; closing a gap does not need it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

CONTAINERS = ("default", "pandas", "polars", None)


def tags() -> Any:
    """The tags of a transformer of real arrays [K, d] that cannot be fitted without a second array."""
    from sklearn.utils import Tags, TargetTags, TransformerTags

    return Tags(estimator_type=None, target_tags=TargetTags(required=True), transformer_tags=TransformerTags())


def not_fitted(message: str) -> ValueError:
    """The error of an estimator that is not fitted: scikit-learn's own, a ValueError, where it is installed."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)


def keep_columns(estimator: Any, given: Any, *, reset: bool):
    """Remember the names of the columns of a data frame as `feature_names_in_`, or hold others against them.

    Raises:
      ValueError: a frame whose columns are not those that were fitted, in their order.
    """
    if not hasattr(given, "columns") and not hasattr(estimator, "feature_names_in_"):
        return
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:
        return
    validate_data(estimator, given, reset=reset, skip_check_array=True)


def names_out(estimator: Any, input_features: Any) -> np.ndarray:
    """Names of as many columns as were fitted: those of the data frame, those given, or x0, x1, …"""
    from sklearn.base import OneToOneFeatureMixin

    return OneToOneFeatureMixin.get_feature_names_out(estimator, input_features)


def in_container(rows: np.ndarray, given: Any, estimator: Any, container: str | None) -> Any:
    """Rows that were made of `given`, in one of CONTAINERS: "default" leaves an array, None asks scikit-learn's settings."""
    loaded = sys.modules.get("sklearn")  # where it is not loaded, nobody has asked
    container = container or (loaded.get_config()["transform_output"] if loaded else "default")
    if container == "default":
        return rows
    from sklearn.preprocessing import FunctionTransformer

    names = lambda *_: estimator.get_feature_names_out()
    return (
        FunctionTransformer(lambda _: rows, feature_names_out=names)
        .set_output(transform=container)
        .fit_transform(given)
    )
