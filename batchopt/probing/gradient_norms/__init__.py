"""Squared norms of single examples' gradients in one forward and one backward pass of the whole batch.

The loss runs under `torch.vmap` over the examples, so that torch itself knows which tensors have a value for every
example and which are shared, and the backward pass runs outside of it, over the whole batch. Every torch function that
takes a trainable parameter is intercepted. For the usual layers (one file per family) its place is taken by an autograd
function that gives the same output and the same gradients, and on the way back reads the examples' squared norms off
what it has at hand. Any other function gets the parameter expanded to one copy per example, whose gradients are
single examples'. Control flow that depends on data raises `BranchesDivergeError` where the examples go different ways,
with the groups of them that can be read together. What comes out is exact, or nothing comes out: a model that
`torch.vmap` cannot follow, a branch that may depend on random numbers, or a parameter that is used where it cannot be
seen, raises `CannotVectoriseError`.
"""
