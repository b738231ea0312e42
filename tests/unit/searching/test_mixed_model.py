"""The mixed model: its posterior is the exact Gaussian one, pairs cancel prompts, and texts count where they tell."""

import numpy as np
import pytest

from flipsearch.searching.surrogate import CONSTANT, JITTER, Array, ContextFeatures, RateModel

NUM = 40_000


def features(num: int, groups: list[int] | None = None, scores: list[float] | None = None) -> ContextFeatures:
    """Contexts of one group share all sentences; the other kernels say nothing."""
    labels = np.array(groups if groups is not None else range(num))
    same = (labels[:, None] == labels[None, :]).astype(float)
    return ContextFeatures(same, np.eye(num), np.zeros((num, num)), np.array(scores or [0.0] * num))


def rates(model: RateModel, given: ContextFeatures, outcomes: Array, num: int = NUM) -> Array:
    return model.sample(given, outcomes, num, np.random.default_rng(0))


def test_the_posterior_is_that_of_the_joint_gaussian() -> None:
    """Against the textbook formula on the vector of all outcomes, for fewer contexts than choose their weights."""
    outcomes = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, np.nan, 1.0], [np.nan] * 4])
    model, given = RateModel(0.3), features(3, [0, 0, 1])
    weights = model.weights
    prior = weights.sentences * given.sentences + weights.words * given.words + CONSTANT
    prior += (weights.own + JITTER) * np.eye(3)
    overall = (outcomes[:2][~np.isnan(outcomes[:2])].sum() + 0.5) / 8.0
    shrunken = [(np.nansum(row) + 4 * overall) / (np.sum(~np.isnan(row)) + 4) for row in outcomes[:2]]
    places = [(c, p) for c in range(2) for p in range(4) if not np.isnan(outcomes[c, p])]
    covariance = np.array([[prior[a, b] + weights.prompts * (p == q) for b, q in places] for a, p in places])
    covariance += np.diag([shrunken[c] * (1 - shrunken[c]) - weights.prompts for c, _ in places])
    # A rate over all prompts is the context's own plus the mean of what the prompts do.
    to_seen = np.array([[prior[c, a] + weights.prompts / 4 for a, _ in places] for c in range(3)])
    values = np.array([outcomes[place] for place in places]) - 0.3
    mean = 0.3 + to_seen @ np.linalg.solve(covariance, values)
    spread = prior + weights.prompts / 4 - to_seen @ np.linalg.solve(covariance, to_seen.T)
    sampled = rates(model, given, outcomes)
    assert sampled.mean(axis=0) == pytest.approx(mean, abs=0.01)
    assert np.cov(sampled.T) == pytest.approx(spread, abs=0.004)


def test_two_contexts_are_compared_in_pairs() -> None:
    """On prompts that are all or nothing for both, one flip more shows better than by the two rates alone."""
    hard = np.array([1.0, 0.0] * 30)
    other = hard.copy()
    other[1:9:2] = 1.0
    lower = np.array([hard, other, *[hard] * 4])
    sampled = rates(RateModel(0.3), features(6), lower)
    difference = sampled[:, 1] - sampled[:, 0]
    assert difference.std() < 0.6 * np.sqrt(2 * 0.25 / 60)  # that of two unpaired shares
    assert (difference > 0).mean() > 0.8


def test_texts_predict_where_they_tell_and_only_there() -> None:
    generator = np.random.default_rng(1)
    groups = [index % 4 for index in range(24)]
    by_group, by_chance = np.array([0.1, 0.3, 0.6, 0.9]), generator.permutation(np.repeat([0.1, 0.3, 0.6, 0.9], 6))
    for true in (by_group[groups], by_chance):
        outcomes = (generator.random((24, 40)) < true[:, None]).astype(float)
        outcomes[20:] = np.nan  # one of each group is left to predict
        predicted = rates(RateModel(0.3), features(24, groups), outcomes)[:, 20:]
        if true is by_chance:
            assert np.ptp(predicted.mean(axis=0)) < 0.25
            assert predicted.std(axis=0).min() > 0.15
        else:
            assert predicted.mean(axis=0) == pytest.approx(by_group, abs=0.1)
            assert predicted.std(axis=0).max() < 0.15


def test_scores_count_as_much_as_they_predicted() -> None:
    generator, scores = np.random.default_rng(2), np.linspace(-1.5, 1.5, 20)
    outcomes = (generator.random((20, 40)) < (0.5 + 0.25 * scores)[:, None]).astype(float)
    outcomes[[0, 19]] = np.nan
    predicted = rates(RateModel(0.3), features(20, None, list(scores)), outcomes).mean(axis=0)
    assert predicted[19] - predicted[0] > 0.4
    outcomes[1:19] = (generator.random((18, 40)) < 0.5).astype(float)
    untold = rates(RateModel(0.3), features(20, None, list(scores)), outcomes).mean(axis=0)
    assert abs(untold[19] - untold[0]) < 0.15


def test_nothing_known_and_nothing_to_know() -> None:
    sampled = rates(RateModel(0.3), features(2), np.full((2, 5), np.nan))
    assert sampled.mean() == pytest.approx(0.3, abs=0.02)
    assert sampled.std() > 0.3
    assert rates(RateModel(0.05), features(2), np.full((2, 0), np.nan), 8).shape == (8, 2)
