"""Training: On-Policy Self-Alignment and its off-policy rivals under matched data.

    inputs.py      what is asked for: settings, contexts, their cards
    plan.py        what is trained on what, checked before a model is loaded (checks.py)
    run.py         from first to last: load, route, train, save
    routing.py     which context each prompt is read under         answers.py  what the rivals learn from
    opsa.py        the method: sampling and loss inside transformers' Trainer; sft.py  the rivals' loss
    divergence.py  divergences in chunks, exact                    rows.py, heads.py  both sides of a completion
    stats.py, log.py, checkpoint.py, memory.py, arguments.py       what goes with any training

Letters in shapes: B rows, T padded tokens of prompt and completion, C completion tokens of one row, N completion
tokens of a whole batch, K tokens of the teacher's top-k support, V vocabulary, H hidden width.
"""
