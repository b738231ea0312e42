"""Training: on-policy self-alignment and its off-policy baseline methods under matched data.

plan.py        settings, contexts and prompts, checked before a model is loaded
run.py         from first to last: load, route, train, save
rows.py        completions behind both prompts; before training, the context of each prompt, the answers that are kept
methods.py     where completions come from, and what their tokens cost
trainer.py     the loop that all share      divergence.py  their losses, in chunks, exact
model.py       student and teacher, how their logits are made, what they hold in memory
cost.py        what a training takes
checkpoint.py, log.py, processes.py         the folders, the log, several processes
"""
