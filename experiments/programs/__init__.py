"""A study on a machine that has JAX and no TensorFlow.

`write` compiles what its runs compute to StableHLO programs, here, with TensorFlow;
`run` goes through its runs there, with JAX; `read` makes of what came out the folder
that `experiments.study` would have left, without weights, pictures and logs.
"""
