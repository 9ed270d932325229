"""The device of a run: precision, CPU threads and peak FLOP/s.

The model FLOPs utilisation (MFU) is the fraction of the device's peak that training reaches. It is computed from the
FLOPs of a step in matrix products (`LanguageModel.flops_per_token` times the tokens of the step), divided by the
seconds of the step and by the peak in FLOP/s.

For the GPUs listed in `peak.py`, the peak in bf16 and fp16 is the manufacturer's figure. In all other cases the peak
is measured with a matrix product.
"""
