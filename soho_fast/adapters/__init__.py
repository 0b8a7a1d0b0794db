"""Drop-in use of the ops from code written for other libraries; one module per library, named like it.

`vector_quantize_pytorch`: `accelerate_vector_quantize(module)`. `pylibraft`: `fused_l2_nn_argmin`.
"""
