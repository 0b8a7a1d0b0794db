"""What scikit-learn asks of any estimator, without scikit-learn: parameters, tags, the state of being fitted."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, Self

from soho_fast.cluster.rows import check_names


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked before `fit`. Where scikit-learn is loaded its own error of that name is raised."""


class Estimator:
    """Parameters are what `__init__` takes and keeps unchanged under the same names; what ends in `_` is fitted."""

    cluster_centers_: Any
    n_features_in_: int

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name. `deep` changes nothing: none of them is an estimator."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters by name.

        Raises:
            ValueError: a name that is no parameter.
        """
        names = self._parameter_names()
        for name, value in params.items():
            if name not in names:
                raise ValueError(f"{name}: expected a parameter of {type(self).__name__}, one of {', '.join(names)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            # By their texts: of arrays `!=` has no single answer.
            if repr(value) != repr(defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """What only scikit-learn asks for, so that it is there."""
        kinds = sys.modules["sklearn.utils"]
        return kinds.Tags(
            estimator_type="clusterer",
            target_tags=kinds.TargetTags(required=False),
            transformer_tags=kinds.TransformerTags(preserves_dtype=["float64", "float32"]),
        )

    def _keep_columns(self, number: int, names: Sequence[str]) -> None:
        self.n_features_in_ = number
        vars(self).pop("feature_names_in_", None)
        if names:
            import numpy as np

            self.feature_names_in_ = np.asarray(names, dtype=object)

    def _check_columns(self, number: int, names: Sequence[str]) -> None:
        """ValueError unless rows have as many columns as were fitted, of the same names where both have names."""
        if number != self.n_features_in_:
            raise ValueError(
                f"X has {number} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                f"input"
            )
        check_names("X", names, getattr(self, "feature_names_in_", ()))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            kind = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", NotFittedError)
            raise kind(f"This {type(self).__name__} is not fitted yet: call fit before this method")
