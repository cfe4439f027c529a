"""Training: the SFT step and its state, and the loop, checkpoints and export that GRPO shares.

step.py        the SFT step; gradients, update and compilation of any kind of step
losses.py      log-probabilities in chunks, sums of cross-entropy
optimizer.py   schedule and chain of optax transformations
state.py       TrainState and Setup: trained and frozen weights, and their shardings
supervised.py  SFT as the work of the loop; feed.py, meter.py and samples.py serve it
loop.py        step, report, evaluate, save, stop; stopping.py, metrics.py, checkpoint.py
phases.py      what a process does at the moment: for goodput.py, and for the watch over processes
profile.py     traces of a few steps, also on request
runs.py        the runs below a folder, and which had certain records
run.py         from settings to the exported model: the frame of the jobs sft and grpo

Imports watch, generate, hf, data, models and what lies below them.
"""
