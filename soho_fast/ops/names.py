"""The names of the compiled extension and of the ops' namespace in `torch.ops`; a kernel hub's build gives others."""

EXTENSION = "soho_fast._C"
NAMESPACE = "soho_fast"
