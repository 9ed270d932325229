"""The device of a run: its precision, its CPU threads and its peak.

The model FLOPs utilisation (MFU) is the FLOPs of a step in matrix products (`LanguageModel.flops_per_token`), divided
by the step's time and by the device's peak. The peak is the manufacturer's figure for the GPUs in the table of
`peak.py`, and is measured with a matrix product for every other device.
"""
