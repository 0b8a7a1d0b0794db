"""SOHO pre-training (CVPR 2021) on exact, fast codebook ops.

``from soho_fast import ops`` needs only torch. The model, data and engine packages are imported by name where they are
used, so that a codebase that wants the ops does not pay for transformers or DeepSpeed; these come with the extra
`train`.
"""

__version__ = "0.2.0"
