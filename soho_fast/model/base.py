"""What every SOHO model shares: initial values, precision, who is trained how, and the switches an engine turns."""

from collections.abc import Callable
from pickle import UnpicklingError
from pkgutil import resolve_name
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertSelfAttention

from soho_fast.common.checksums import check_checksums
from soho_fast.common.hub import HUB_OPTIONS, loading_options

from .auxiliary import BagOfWordsHead, ContrastiveHead
from .config import SohoConfig
from .feature_watch import FeatureWatch
from .normalization import RunningStatistics, TokenBatchNorm
from .outputs import VisualTokens
from .pretrained import LoadReport, backbone_state, copy_state, text_state
from .quantiser import Quantiser
from .towers import tower_state
from .values import TRANSFORMERS
from .whole_step import MicroBatches, Vectors, WholeStep, survey

# Modules of ours with values of their own that no layer of theirs has; so has a quantiser.
_WITH_RESET = (RunningStatistics, BagOfWordsHead, ContrastiveHead)


class SohoPreTrainedModel(PreTrainedModel):
    """A SOHO model of any kind; `config` is a `SohoConfig`.

    Initial values are BERT's (`initializer_range`), He et al. 2015 for convolutions.
    """

    config: SohoConfig
    config_class = SohoConfig
    base_model_prefix = "soho"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # The loss is a mean: transformers' Trainer is to divide it by the number of accumulated batches.
    accepts_loss_kwargs = False
    # What watches its features in training, see `watch_features`; of a `SohoModel` alone.
    feature_watch: FeatureWatch | None
    # What the losses of a step with several micro-batches ask of all of them, from `survey` to `end_step`.
    whole_step: WholeStep | None = None
    # How it was prepared for inference; `None`: not.
    prepared: dict[str, Any] | None = None
    _supports_sdpa = True
    _supports_attention_backend = True
    # transformers' own, which each model replaces by its own: no class variables.
    _no_split_modules: list[str] = ["BertEmbeddings", "BertLayer"]  # noqa: RUF012
    _can_record_outputs: dict = {"hidden_states": BertLayer, "attentions": BertSelfAttention}  # noqa: RUF012
    # Loading in half precision must not round what stays float32 under `.half()`.
    _keep_in_fp32_modules_strict: list[str] = [  # noqa: RUF012
        "running_mean",
        "running_var",
        *(
            f"visual_dictionary.{x}"
            for x in ("codebook", "usage", "age", "cluster", "total", "project", "places", "words.")
        ),
    ]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As transformers' own; a folder that is not there, or a hub out of reach, is reported at once.

        Raises:
            FileNotFoundError: it looks like a path and is not there, or is a folder without config.json.
            ValueError: the folder is not as it was written, the file of its weights is damaged, or they are of other
                sizes.
        """
        name = pretrained_model_name_or_path
        if name is not None:
            hub_options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            kwargs |= loading_options(name, **hub_options)[0]
            check_checksums(name)
        try:
            return super().from_pretrained(name, *model_args, **kwargs)
        except (SafetensorError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{name}: the file of its weights is damaged ({reason}); copy it again") from error
        except (OSError, ValueError):
            raise
        except Exception as error:  # More than any memory holds; and transformers takes types for granted.
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{name}: no model can be made of its config.json and weights here ({reason})") from error

    @classmethod
    def loaded_from(cls, path_or_name: str, **options: Any) -> tuple[Self, list[str]]:
        """A float32 model of what `save_pretrained` wrote or the hub has, and the names of the tensors that are missing
        there or have another size; see `from_pretrained`, of which `options` are."""
        model, info = cls.from_pretrained(
            path_or_name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        return model, sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; ValueError: `mode` where the model was prepared for inference."""
        if mode:
            self._refuse_where_prepared("train", "an unprepared one")
        return super().train(mode)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; ValueError: the model was prepared for inference."""
        self._refuse_where_prepared("save_pretrained", "the model that was loaded, which lies where it was loaded from")
        return super().save_pretrained(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`; ValueError: the model was prepared for inference."""
        self._refuse_where_prepared("load_state_dict", "weights to be loaded before")
        return super().load_state_dict(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers' own; ValueError: the model was prepared for inference."""
        self._refuse_where_prepared("resize_token_embeddings", "the vocabulary to be resized before")
        return super().resize_token_embeddings(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        if self.prepared is not None:
            was = torch.empty(0, device=self.device)
            # `fn` does not say what it changes: an empty tensor shows it.
            now = fn(was)
            if now.dtype != was.dtype:
                self._refuse_where_prepared(f"to {now.dtype}", "the precision to be given to prepare_for_inference")
            if now.device.type != was.device.type:
                self._refuse_where_prepared(f"to {now.device}", "the model to be moved before it is prepared")
        return super()._apply(fn, recurse)

    def _refuse_where_prepared(self, asked: str, expected: str) -> None:
        if self.prepared is not None:
            how = self.prepared["precision"]
            raise ValueError(f"{asked}: this model was prepared for inference in {how}; expected {expected}")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # He et al. 2015 for the convolutions before a ReLU, as torchvision; the 1x1 projection has none behind it.
            if module.bias is None:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, _WITH_RESET) or module is getattr(self, "visual_dictionary", None):
            module.reset()
        elif (initial_values := getattr(module, "initial_values", None)) is not None:
            initial_values(module)
        elif isinstance(module, BertEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)
        else:
            super()._init_weights(module)

    def prepare_for_inference(self, *args: Any, **kwargs: Any) -> Self:
        """See `fast/prepared: prepare_for_inference`."""
        # By its name: it is made of these models.
        return resolve_name("soho_fast.model.fast.prepared:prepare_for_inference")(self, *args, **kwargs)

    def base(self) -> Any:
        """The `SohoModel` inside (itself, for one)."""
        raise NotImplementedError

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Cold start of the paper; see `VisualEncoder.freeze_backbone` (learning rate 0 is the optimiser's part)."""
        self.base().visual_encoder.freeze_backbone(frozen)
        if self.base().feature_watch is not None:
            self.base().feature_watch.backbone_frozen = frozen

    def watch_features(self) -> None:
        """From here on training says how its features fare, see `FeatureWatch`; a saved model holds nothing of it."""
        self.base().feature_watch = FeatureWatch(self.config.hidden_size)
        of_training = {name for name, _ in self.named_buffers() if "feature_watch." in name}
        self._keys_to_ignore_on_save = {*(self._keys_to_ignore_on_save or ()), *of_training}

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Holds the backbone's BatchNorm in eval while the rest trains: then nothing depends on who shares a batch."""
        self.base().visual_encoder.freeze_batch_norm(frozen)

    def compile_transformer(self, backend: str = "inductor") -> None:
        """From the first call on the Transformer's layers run compiled, for any number of texts and tokens.

        Weights, their names and what is saved stay. States are those of the plain layers up to rounding, and with
        dropout up to what is drawn.

        Args:
            backend: torch.compile's.
        """
        base = self.base()
        base.encoder.compile(dynamic=True, backend=backend)
        base.encoder_compiled = True

    def begin_step(self) -> None:
        """From here on training forwards gather what `end_step` moves the dictionary and its BatchNorm by.

        See `VisualDictionary` and `TokenBatchNorm`. A training loop that calls neither trains too: each training
        forward then moves them.
        """
        self.whole_step = None
        for module in self._moved_without_gradient():
            module.begin_step()

    @property
    def read_by_begin_step(self) -> list[nn.Parameter]:
        """The parameters whose values `begin_step` reads."""
        return []

    def survey(self, micro_batches: MicroBatches) -> None:
        """Makes the losses of the forwards up to `end_step` those of one step; see `whole_step.py: survey`."""
        survey(self, micro_batches)

    def surveys_images(self) -> bool:
        """See `Surveyed`."""
        return False

    def label_counts(self, visual: VisualTokens | None, **inputs: Any) -> dict[str, Tensor]:
        """See `Surveyed`; none is known of a model without losses."""
        return {}

    def vectors_of(self, visual: VisualTokens | None, **inputs: Any) -> Vectors | None:
        """See `Surveyed`."""
        return None

    def end_step(self, *, applied: bool) -> None:
        """Moves them by all forwards since `begin_step`, unless the optimiser has not `applied` the step."""
        self.whole_step = None
        for module in self._moved_without_gradient():
            module.end_step(applied=applied)

    def _moved_without_gradient(self) -> list["TokenBatchNorm | Quantiser | FeatureWatch"]:
        base = self.base()
        parts = (base.feature_norm, base.visual_dictionary, base.feature_watch)
        # Not every BatchNorm moves once a step.
        return [part for part in parts if hasattr(part, "begin_step")]

    def take_num_non_finite(self) -> int:
        """How many visual tokens were not finite in training since the last call; see `Quantiser`."""
        dictionary = self.base().visual_dictionary
        return 0 if dictionary is None else dictionary.take_num_non_finite()

    def parameter_groups(self, *, matrices: bool = False) -> list[dict]:
        """Who is trained how (paper section 4.1): SGD for the backbone, AdamW for the rest (the 1x1 projection too).

        Args:
            matrices: The Transformer's matrices, without embeddings and heads, are groups of their own.

        Returns:
            dicts with `params`, `names`, `kind` ("backbone" or "rest"), `part`, as `waiting_parts` names it, and
            `matrices`, whether it holds these alone; no group is empty, and parameters that need no gradient are in
            none.
        """
        backbone = {id(parameter) for parameter in self.base().visual_encoder.backbone.parameters()}
        hidden = {id(parameter) for parameter in self.base().encoder.parameters() if matrices and parameter.dim() == 2}
        groups: dict[tuple[str, str, bool], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind, part = "backbone" if id(parameter) in backbone else "rest", self.part_of(name)
                key = (kind, part, id(parameter) in hidden)
                new: dict[str, Any] = {"params": [], "names": [], "kind": kind, "part": part, "matrices": key[2]}
                group = groups.setdefault(key, new)
                group["params"].append(parameter)
                group["names"].append(name)
        return [groups[key] for key in sorted(groups)]

    def part_of(self, name: str) -> str:
        """The part of the model, as `waiting_parts` names it, that a parameter of this name belongs to."""
        return ""

    @property
    def waiting_parts(self) -> frozenset[str]:
        """The parts whose parameters the training forwards of this phase do not use, so that they get no gradient."""
        return frozenset()

    def init_text_encoder_from(self, path_or_name: str) -> LoadReport:
        """Fills word embeddings and Transformer layers from a BERT (the paper: BERT-base) or what another text encoder
        has of them, see `pretrained.text_state`. With fewer layers here than there, the first ones are taken.

        Raises:
            FileNotFoundError, ValueError: see there. Nothing was changed then.
        """
        target = nn.ModuleDict({"embeddings": self.base().text_embeddings, "encoder": self.base().encoder})
        state = text_state(path_or_name, target.state_dict(), self.config)
        return copy_state(target, state, f"init_text_encoder_from({path_or_name!r})")

    def init_backbone_from(self, source: str) -> LoadReport:
        """Fills the backbone from `"imagenet"` (downloaded by torchvision), a file of weights, or a folder or a name on
        the hub that has them.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: see `pretrained.backbone_state` and `towers.tower_state`;
                nothing was changed then.
        """
        net = self.base().visual_encoder.backbone
        of_transformers = self.config.backbone.startswith(TRANSFORMERS)
        state = tower_state(net, source) if of_transformers else backbone_state(self.config.backbone, source)
        return copy_state(net, state, f"init_backbone_from({source!r})")
