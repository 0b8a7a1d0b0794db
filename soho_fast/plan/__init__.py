"""What a recipe needs on a cluster, before there is one: `python -m soho_fast.plan --gpus 32 --card v100`.

Operations and memory are those of the real model classes, run on fake tensors: the meta device's, which have a shape
and a type and no values. What they cannot tell (how many labels there are) is assumed, and each assumption is printed
with where it comes from.
"""
