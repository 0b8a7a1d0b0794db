"""What scikit-learn asks of any estimator, without scikit-learn: parameters, tags, the state of being fitted."""

import copy
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from soho_fast.cluster.rows import check_names


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked before `fit`. Where scikit-learn is loaded its own error of that name is raised."""


CONTAINERS = ("default", "pandas", "polars")


class Estimator:
    """Parameters are what `__init__` takes and keeps unchanged under the same names; what ends in `_` is fitted."""

    cluster_centers_: Any
    n_features_in_: int
    _container: str | None = None
    _requests: Mapping[str, Any] = {}

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

    def __sklearn_clone__(self) -> Self:
        new = type(self)(**copy.deepcopy(self.get_params()))
        new._container, new._requests = self._container, self._requests
        return new

    def get_metadata_routing(self) -> Any:
        """What scikit-learn asks where `enable_metadata_routing` is set: a `MetadataRequest`."""
        request = sys.modules["sklearn.utils.metadata_routing"].MetadataRequest(owner=self)
        for method in (name for name in ("fit", "partial_fit", "score") if hasattr(self, name)):
            getattr(request, method).add_request(param="sample_weight", alias=self._requests.get(method))
        return request

    def set_fit_request(self, *, sample_weight: bool | str | None) -> Self:
        """Whether pipelines and searches of scikit-learn hand `sample_weight` to `fit`; text: by that name."""
        self._requests = {**self._requests, "fit": sample_weight}
        return self

    def set_score_request(self, *, sample_weight: bool | str | None) -> Self:
        """As `set_fit_request`, for `score`."""
        self._requests = {**self._requests, "score": sample_weight}
        return self

    def set_output(self, *, transform: str | None = None) -> Self:
        """What `transform` and `fit_transform` give: "pandas" or "polars" a DataFrame; "default" what X came as; None
        changes nothing. Without a call of this it is what `sklearn.set_config` says.

        Raises:
            ValueError: anything else. ImportError: that library is not installed.
        """
        if transform not in (None, *CONTAINERS):
            raise ValueError(f"transform: expected {', '.join(CONTAINERS)} or None, got {transform!r}")
        if transform not in (None, "default") and importlib.util.find_spec(transform) is None:
            raise ImportError(f"transform: expected an installed library, but {transform} is not there")
        self._container = transform or self._container
        return self

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """The names of `transform`'s columns, a numpy array: kmeans0, kmeans1, ... `input_features` is not used."""
        import numpy as np

        self._check_fitted()
        name = type(self).__name__.lower()
        return np.asarray([f"{name}{column}" for column in range(len(self.cluster_centers_))], dtype=object)

    def _framed(self, X: Any, columns: Any) -> Any:
        """`columns` (N, ...) of the rows X, as `set_output` asks."""
        sklearn = sys.modules.get("sklearn")
        container = self._container or (sklearn.get_config()["transform_output"] if sklearn else "default")
        if container == "default":
            return columns
        library = importlib.import_module(container)
        values, names = columns.cpu().numpy() if isinstance(columns, Tensor) else columns, self.get_feature_names_out()
        if container == "polars":
            return library.DataFrame(values, schema=list(names), orient="row")
        return library.DataFrame(values, columns=names, index=X.index if isinstance(X, library.DataFrame) else None)

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
            transformer_tags=kinds.TransformerTags(preserves_dtype=["float32"]),
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
