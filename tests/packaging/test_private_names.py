"""Names that other libraries do not promise to keep, each with its use: a release without one is told here, by name.

Their upper bounds stand in pyproject.toml. Where a library offers the same under a public name, that is taken.
"""

import ast
import inspect
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Private:
    """A name, what it is used for, and "module:object" that has it.

    An object that gives the name only to its instances has the pieces of `source` in its text instead.
    """

    name: str
    use: str
    owner: str
    source: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        return self.owner.split(".")[0].split(":")[0]

    def is_there(self) -> bool:
        try:
            owner = resolve_name(self.owner)
        except (ImportError, AttributeError):
            return False
        if self.source:
            return all(piece in inspect.getsource(owner) for piece in self.source)
        return hasattr(owner, self.name)


MODULE, ENGINE = "torch.nn:Module", "deepspeed.runtime.engine:DeepSpeedEngine"
LOADER = "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter"
HF = "transformers:PreTrainedModel"
ZERO3 = "deepspeed.runtime.zero.partition_parameters:Init"
ZERO12 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
ZERO3_OPTIMIZER = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
PRIVATE = [
    Private("_apply", "overridden: buffers stay float32", MODULE),
    Private("_base", "a codebook that is a view of a leaf is not moved in place", "torch:Tensor"),
    *(
        Private(name, "hooks make the packed encoder step aside", MODULE, (f"self.{name}",))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ),
    Private("_shutdown_workers", "loader processes end with the run", LOADER),
    Private("_workers", "those that linger are killed", LOADER, ("self._workers.append(",)),
    Private("triton_ops_to_kernels", "a changed kernel drops a cached graph", "torch._library.triton"),
    Private("FunctionalTensorMode", "torch.compile sees kernels", "torch._subclasses.functional_tensor"),
    *(
        Private(name, "layers with constant weights, as Inductor calls them", "torch:ops.mkldnn")
        for name in (
            "_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise",
            "_reorder_convolution_weight", "_reorder_linear_weight",
        )
    ),
    *(
        Private(name, "layers in int8, as Inductor calls them", "torch:ops.onednn")
        for name in ("qconv_prepack", "qconv2d_pointwise", "qlinear_prepack", "qlinear_pointwise")
    ),
    Private("_functorch", "transforms of torch.func are refused", "torch:_C"),
    Private("_AutoDispatchBelowAutograd", "an index has no gradient", "torch:_C"),
    *(
        Private(name, "asked of it", "torch._C:_functorch")
        for name in ("is_functorch_wrapped_tensor", "peek_interpreter_stack")
    ),
    Private("aoti_compile_and_package", "a model is compiled into a file", "torch._inductor"),
    Private("aoti_load_package", "and loaded from it", "torch._inductor"),
    Private("_init_weights", "overridden: starting values", HF),
    Private("_attn_implementation", "attentions that are not computed are refused", "transformers:PreTrainedConfig"),
    Private("_tied_weights_keys", "overridden: tied weights", HF),
    Private(
        "__compatible_ops__", "no compiler is started for an op that is not used",
        "deepspeed.comm.torch:build_shm_op", ("deepspeed.ops.__compatible_ops__.get(builder.NAME, False)",),
    ),
    Private(
        "checkpoint_engine", "a failed write is noted, not raised between barriers",
        ENGINE, ("self.checkpoint_engine.save(", "self.checkpoint_engine.makedirs("),
    ),
    Private(
        "TorchCheckpointEngine", "the writer that notes",
        "deepspeed.runtime.checkpoint_engine:TorchCheckpointEngine", ("def save(", "def load(", "def commit("),
    ),
    *(
        Private(owner.split(":")[1], "plain data among what DeepSpeed saves, hence loaded", owner, source)
        for owner, source in {
            "deepspeed.runtime.fp16.loss_scaler:LossScaler": ("class LossScaler",),
            "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler": ("class DynamicLossScaler",),
            "deepspeed.utils.tensor_fragment:fragment_address": ("class fragment_address",),
        }.items()
    ),
    Private("_copy_recovery_script", "nothing is raised between barriers", ENGINE),
    Private("enable_backward_allreduce", "one process sums nothing", ENGINE, ("if self.enable_backward_allreduce",)),
    Private("basic_optimizer", "rates are set under ZeRO", ENGINE, ("self.basic_optimizer = ",)),
    Private("ds_id", "weights that ZeRO 3 holds are not folded", ZERO3, ("param.ds_id = ",)),
    Private("ds_tensor", "a rank's part of a parameter is looked at", ZERO3, ("param.ds_tensor = ",)),
    Private("ds_numel", "parameters that ZeRO 3 holds are counted", ZERO3, ("param.ds_numel = ",)),
    Private(
        "_hp_mapping", "where a parameter lies in what a rank steps, at ZeRO 1 and 2",
        "deepspeed.utils.mixed_precision_linkage:link_hp_params", ("lp_param._hp_mapping = get_hp_fragment_mapping(",),
    ),
    *(
        Private(name, "what a rank steps is loaded for another number of ranks", owner, source)
        for name, owner, source in (
            ("single_partition_of_fp32_groups", ZERO12, ("self.single_partition_of_fp32_groups.append(",)),
            ("bit16_groups", ZERO12, ("self.bit16_groups.append(",)),
            ("update_lp_params", ZERO12, ()),
            ("fp32_partitioned_groups_flat", ZERO3_OPTIMIZER, ("self.fp32_partitioned_groups_flat.append(",)),
            ("fp16_groups", ZERO3_OPTIMIZER, ("self.fp16_groups.append(",)),
            ("checkpoint_event_prologue", ZERO3_OPTIMIZER, ()),
            ("checkpoint_event_epilogue", ZERO3_OPTIMIZER, ()),
            ("partition_numel", ZERO3, ("param.partition_numel = ",)),
        )
    ),
    Private(
        "_codebook", "the layer that is accelerated", "vector_quantize_pytorch:VectorQuantize", ("self._codebook = ",)
    ),
]  # fmt: skip
# Python's own.
OTHERS = {"_exit", "_asdict", "_replace", "_actions"}


@cache
def trees() -> dict[str, list[ast.AST]]:
    """Every node of every file of the package."""
    paths = (ROOT / "soho_fast").rglob("*.py")
    return {str(path.relative_to(ROOT)): list(ast.walk(ast.parse(path.read_text()))) for path in paths}


def read_names(nodes: list[ast.AST]) -> set[str]:
    """Names of attributes, of imports from outside, and of strings that may name an attribute."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {*node.module.split("."), *(alias.name for alias in node.names)}
    return names


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: f"{private.library}-{private.name}")
def test_a_private_name_is_there(private):
    files = [file for file, nodes in trees().items() if private.name in read_names(nodes)]
    overridden = any(getattr(node, "name", None) == private.name for nodes in trees().values() for node in nodes)
    assert files or overridden, f"nothing uses {private.name}: take it out here"
    assert private.is_there(), (
        f"{', '.join(files)} uses {private.name} of {private.owner}, which the installed release lacks "
        f"({private.use}): find another way, or set an upper bound in pyproject.toml"
    )


def test_every_private_name_is_listed_here():
    """Names with an underscore that nothing in the package defines, and all that are reached through `super()`."""
    own = set()
    for node in (node for nodes in trees().values() for node in nodes):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            own.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    listed = {private.name for private in PRIVATE} | OTHERS
    # Modules from which what is taken is listed.
    listed |= {part for private in PRIVATE for part in private.owner.split(":")[0].split(".")}
    unlisted = []
    for file, nodes in trees().items():
        names = read_names([node for node in nodes if isinstance(node, (ast.Attribute, ast.ImportFrom))]) - own
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
                names |= {node.attr} if getattr(node.value.func, "id", None) == "super" else set()
        private = {name for name in names if name.startswith("_") and not name.startswith("__")}
        unlisted += [f"{file}: {name}" for name in sorted(private - listed)]
    assert unlisted == []


def test_a_library_whose_private_names_are_used_has_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounds = {requirement.name.replace("-", "_"): requirement.specifier for requirement in map(Requirement, lines)}
    operators = {name: {part.operator for part in specifier} for name, specifier in bounds.items()}
    assert {private.library for private in PRIVATE if "<" not in operators[private.library]} == set()
