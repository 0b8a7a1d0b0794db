"""Names that other libraries do not promise to keep, each with its use: a release without one is told here, by name.

Their upper bounds stand in pyproject.toml. Where a library offers the same under a public name, that is taken.
"""

import ast
import inspect
import tomllib
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).resolve().parents[2] / "soho_fast"


@dataclass(frozen=True)
class Private:
    """A name, the file that uses it, what for, and "module:object" that has it.

    An object that gives the name only to its instances must have `source` in its text instead.
    """

    name: str
    file: str
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


PACKED, CHECKPOINT, TRITON = "model/cpu/packed_encoder.py", "engine/checkpoint.py", "ops/triton_backend.py"
MODULE, ENGINE = "torch.nn:Module", "deepspeed.runtime.engine:DeepSpeedEngine"
LOADER = "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter"
HF = "transformers:PreTrainedModel"
ZERO3 = "deepspeed.runtime.zero.partition_parameters:Init"
PRIVATE = [
    Private("_apply", "model/normalization.py", "overridden: buffers stay float32", MODULE),
    Private("_buffers", "model/normalization.py", "buffers stay float32", MODULE, ("self._buffers",)),
    Private("_load_from_state_dict", "model/visual_dictionary.py", "overridden: a step that is loaded is read", MODULE),
    Private("_conv_forward", "model/backbones.py", "overridden: faster convolutions", "torch.nn:Conv2d"),
    Private("_current_graph_task_id", "model/normalization.py", "a recomputed forward moves no state", "torch:_C"),
    *(
        Private(name, PACKED, "hooks make it step aside", MODULE, (f"self.{name}",))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ),
    Private("_shutdown_workers", "engine/batches.py", "loader processes end with the run", LOADER),
    Private("_workers", "engine/batches.py", "those that linger are killed", LOADER, ("self._workers.append(",)),
    Private("triton_ops_to_kernels", TRITON, "a changed kernel drops a cached graph", "torch._library.triton"),
    Private("FunctionalTensorMode", TRITON, "torch.compile sees kernels", "torch._subclasses.functional_tensor"),
    Private("_init_weights", "model/soho.py", "overridden: starting values", HF),
    Private("_tied_weights_keys", "model/soho.py", "overridden: tied weights", HF),
    Private("_attn_implementation", PACKED, "only SDPA is packed", "transformers:PreTrainedConfig"),
    Private(
        "_gradient_checkpointing_func", "model/visual_encoder.py", "the CNN's activation checkpointing",
        f"{HF}._set_gradient_checkpointing", ("_gradient_checkpointing_func",),
    ),
    Private(
        "__compatible_ops__", "engine/launch.py", "no compiler is started for an op that is not used",
        "deepspeed.comm.torch:build_shm_op", ("deepspeed.ops.__compatible_ops__.get(builder.NAME, False)",),
    ),
    Private(
        "checkpoint_engine", CHECKPOINT, "a failed write is noted, not raised between barriers",
        ENGINE, ("self.checkpoint_engine.save(", "self.checkpoint_engine.makedirs("),
    ),
    Private(
        "TorchCheckpointEngine", CHECKPOINT, "the writer that notes",
        "deepspeed.runtime.checkpoint_engine:TorchCheckpointEngine", ("def save(", "def load(", "def commit("),
    ),
    Private("_copy_recovery_script", CHECKPOINT, "nothing is raised between barriers", ENGINE),
    Private(
        "enable_backward_allreduce", "engine/launch.py", "one process copies no gradients for nobody",
        ENGINE, ("if self.enable_backward_allreduce",),
    ),
    Private("basic_optimizer", "engine/trainer.py", "rates under ZeRO", ENGINE, ("self.basic_optimizer = ",)),
    Private("ds_id", "model/backbones.py", "weights that ZeRO 3 holds are not folded", ZERO3, ("param.ds_id = ",)),
    Private("ds_numel", "train.py", "parameters that ZeRO 3 holds are counted", ZERO3, ("param.ds_numel = ",)),
    Private(
        "_codebook", "adapters/vector_quantize_pytorch.py", "the layer that is accelerated",
        "vector_quantize_pytorch:VectorQuantize", ("self._codebook = ",),
    ),
]  # fmt: skip
# Not of these libraries.
PYTHONS = {"_exit"}


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: f"{private.library}-{private.name}")
def test_a_private_name_is_there(private):
    assert private.name in (PACKAGE / private.file).read_text(), f"{private.file} uses it no more: take it out here"
    assert private.is_there(), (
        f"soho_fast/{private.file} uses {private.name} of {private.owner}, which the installed release lacks "
        f"({private.use}): find another way, or set an upper bound in pyproject.toml"
    )


def test_every_private_name_is_listed_here():
    """Names with an underscore that nothing in the package defines, and all that are reached through `super()`."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            own.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    listed = {(private.name, private.file) for private in PRIVATE}
    # Files in which what comes from a private module is listed, not the module.
    modules = {private.file for private in PRIVATE if "._" in private.owner}
    unlisted = set()
    for path, tree in trees.items():
        file = str(path.relative_to(PACKAGE))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute):
                value = node.value
                through_super = isinstance(value, ast.Call) and getattr(value.func, "id", None) == "super"
                names = [node.attr] if through_super or node.attr not in own else []
            elif isinstance(node, ast.ImportFrom) and not node.level and file not in modules:
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            private = {name for name in names if name.startswith("_") and not name.startswith("__")} - PYTHONS
            unlisted |= {(name, file) for name in private} - listed
    # `torch._C` is the way to a name that is listed.
    assert unlisted - {("_C", "model/normalization.py")} == set()


def test_a_library_whose_private_names_are_used_has_an_upper_bound():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounds = {requirement.name.replace("-", "_"): requirement.specifier for requirement in map(Requirement, lines)}
    operators = {name: {part.operator for part in specifier} for name, specifier in bounds.items()}
    assert {private.library for private in PRIVATE if "<" not in operators[private.library]} == set()
