"""Training: one loop over stages, a step as a pure function, optimizers, evaluation.

Import `seeds` for many networks as one program, `train` for a run, `optim` and `bop` for optimizers.
"""
