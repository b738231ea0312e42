"""Training: On-Policy Self-Alignment (opsa.py), as a library; no command trains yet.

Letters in shapes: B rows, T padded tokens of prompt and completion, C completion tokens of one row, N completion
tokens of a whole batch, K tokens of the teacher's top-k support, V vocabulary, H hidden width.
"""
