"""Training: on-policy self-alignment and its off-policy baseline methods under matched data.

plan.py        settings, contexts and prompts, checked before a model is loaded
run.py         from first to last: load, route, train, save
answers.py     before training: the context of each prompt, the answers that are kept
opsa.py        the method                   sft.py         the baseline methods
trainer.py     the loop that all share      divergence.py  their losses, in chunks, exact
model.py       student and teacher          rows.py        completions behind both prompts
heads.py       how logits are made          rounding.py    bfloat16 on both sides alike
checkpoint.py, log.py, processes.py         the folders, the log, several processes
"""
