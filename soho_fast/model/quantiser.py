"""What the model, its tasks, the explorer, an export and the fast paths ask of a quantiser: features to codes.

`config.dictionary` chooses one: `VisualDictionary` (the paper's), `official/dictionary.py: OfficialDictionary`, or any
class by its import path that has what is listed here, most of it by `CodeUsage`: docs/extending.md has an example.

B images, L tokens per image, C channels, Q levels of K codes; codes of all levels follow one another: QK.
"""

from typing import Protocol

from torch import Tensor


class Quantiser(Protocol):
    """A module that puts a code in a feature's place; made of a `SohoConfig`.

    Attributes:
        num_levels, num_codes: Q and K, as in the config.
        near_features: whether f(v) lies near v: then the distance of the two tells how well codes stand for features.
        usage, age: (QK,) float32, see `codebook/usage.py: CodeUsage`.
        step: () int64, updates so far.
    """

    num_levels: int
    num_codes: int
    near_features: bool
    usage: Tensor
    age: Tensor
    step: Tensor

    def __call__(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        sample_key_B: Tensor | None = None,
        num_texts_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """f(v) (B, L, C), in the features' type, and the first level's code of each token, int64 (B, L), -1 at padding.

        Args:
            feat_BLC: v.
            valid_BL: bool, True at real tokens.
            sample_key_B: float64, a number of each image, the same whichever rank holds it: what is drawn in training
                may depend on it.
            num_texts_B: how often each image counts in training; `None`: once.
        """

    def codes_of(self, feat_BLC: Tensor) -> Tensor:
        """The code of each level for each feature, int64 (B, L, Q), each counted from 0."""

    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """How far each level's code is from what it stands for, float32 (B, L, Q), in whatever unit."""

    def codebook_of(self, level: int) -> Tensor:
        """The vector of each code of a level, (K, C), without gradient; the first level is 0."""

    def draw_by_lift(self, index_BL: Tensor, valid_BL: Tensor, uniform_B: Tensor) -> Tensor:
        """A code to mask in each image, int64 (B,), -1 of one without tokens; of `mvm_masking="lift"`."""

    def statistics(self, level: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Perplexity (), active codes () and usage (K,) of a level, over all steps."""

    def step_statistics(self) -> dict[str, Tensor]:
        """`step_perplexity` and `top_share` of the last step, each (); empty where there was none."""

    def take_num_non_finite(self) -> int:
        """Real tokens that were not finite in training since the last call, on this rank."""

    def begin_step(self) -> None:
        """From here on training forwards belong to one optimiser step."""

    def end_step(self, *, applied: bool) -> None:
        """The step's end on all ranks; where it is not `applied`, as a step that fp16 skips, nothing moves."""

    def reset(self) -> None:
        """The initial values of what a checkpoint has not filled."""
