"""The model: Flax modules on a nested dict of parameters, without files and without data.

params.py       parameters declared once: arrays, axes, shardings and tensor names follow from it
layers.py       what the towers share: linear, norms, rotation, the loop over layers
attention.py    attention in XLA, and the choice of a kernel for TPU or GPU
flash_kernel.py     attention in training and prefill, as kernels for GPUs
decode_kernel.py    attention in decoding, as kernels for GPUs
compute.py      settings of how a model runs
lora.py         a low-rank adapter beside the decoder's weights
int8.py         weights and caches in int8, for generation
qwen2_5_omni/   everything that is a fact of this family

Imports errors, files, settings and sharding only.
"""
