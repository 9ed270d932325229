"""Optimizers and the learning rate schedule.

A parameter group has its own share of the learning rate (`lr_ratio`), so one schedule drives both Muon and AdamW. The
rest of the program sees these two as one optimizer with one state. This Muon updates all matrices of one shape
together, in fp32 on a CPU; PyTorch's updates them one after the other, always in bf16. The matrix that computes
queries, keys and values counts as three. Matrices decay, vectors do not.
"""
