"""Training: the SFT step, what it carries, and the loop, checkpoints and export that GRPO shares.

step.py        the SFT step, and what every kind of step is made of
losses.py      log-probabilities in chunks, sums of cross-entropy
optimizer.py   schedule and chain of optax transformations
state.py       TrainState and Setup: what learns, what is frozen, how it lies on the mesh
supervised.py  SFT as the work of the loop; feed.py, meter.py and samples.py serve it
loop.py        step, report, evaluate, save, stop; stopping.py, metrics.py, checkpoint.py
run.py         from settings to the exported model: the frame of the jobs sft and grpo

Imports generate, hf, data, models and what lies below them.
"""
