"""Builds the pocket model: a small model with latent safety whose true rates are known from its grammar.

grammar.py   intents, prompts, cues and the probability of a safe answer: the ground truth
corpus.py    training samples of the grammar
build.py     tokenizer and weights from the corpus (python -m pocket_model.build)
truth.py     calibration and the best reachable flip rate, measured on the finished weights
"""
