"""Optimizers and the learning rate schedule.

- A parameter group may have an `lr_ratio`, by which the scheduled learning rate is multiplied. One schedule can
  therefore set the learning rates of both Muon and AdamW.
- Muon and AdamW are combined into one optimizer with one state, so the rest of the program need not distinguish them.
- This Muon updates all matrices of one shape together, in fp32 on a CPU and in bf16 elsewhere. PyTorch's Muon updates
  one matrix at a time, always in bf16.
- Muon treats the matrix that computes queries, keys and values as three matrices.
- Weight decay applies to matrices, not to vectors.
"""
