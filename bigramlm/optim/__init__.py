"""Optimizers, and the learning rate of every step.

A parameter group has its own share of the learning rate (`lr_ratio`), so that one schedule drives Muon and AdamW.
These two are one optimizer to the rest of the program, with one state. Our Muon takes all matrices of one shape at
once, in fp32 on a CPU, where PyTorch's takes one after the other and always in bf16; and it takes queries, keys and
values, which one matrix makes, for the three that they are. Matrices decay, vectors do not.
"""
