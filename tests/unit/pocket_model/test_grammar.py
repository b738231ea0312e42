"""The pocket model's ground truth does what its description says, axis by axis."""

import random

import pytest

from flipsearch.core.records import Context
from flipsearch.templating.library import POCKET_CONTEXTS, load_library
from pocket_model import vocabulary as words
from pocket_model.context_source import ContextSource, reworded
from pocket_model.corpus import placed, samples
from pocket_model.grammar import (
    Intent,
    Query,
    benign_intents,
    canonical,
    effect,
    expected_flip_rate,
    expected_over_refusal,
    harmful_intents,
    p_refused,
    p_safe,
    p_turn,
)
from pocket_model.prompt_set import queries
from pocket_model.replies import answer, completion, thought, turned, unturned

HARMFUL = tuple(a for a, _ in queries() if a.intent.kind == "harmful")
BENIGN = tuple(a for a, _ in queries() if a.intent.kind == "benign")
LIBRARY = load_library(shipped=POCKET_CONTEXTS)


def flip_rate(template: str, placement: str = "system", **params: object) -> float:
    return expected_flip_rate(LIBRARY[template].context(params, placement), HARMFUL)  # type: ignore[arg-type]


def over_refusal(template: str, **params: object) -> float:
    return expected_over_refusal(LIBRARY[template].context(params), BENIGN)


def test_there_are_many_intents_in_many_categories_each_with_its_hardness() -> None:
    intents = harmful_intents()
    assert len({i.text for i in intents}) == len(intents) >= 120
    assert len({i.category for i in intents}) >= 8
    assert len({round(i.hardness, 3) for i in intents}) > 100


def test_without_context_most_harmful_prompts_are_answered_and_no_benign_one_is_refused() -> None:
    unsafe = sum(p_safe(None, query) < 0.5 for query in HARMFUL) / len(HARMFUL)
    assert 0.80 <= unsafe <= 0.95
    assert all(p_refused(None, query) < 0.5 for query in BENIGN)


def test_strength_raises_the_flip_rate() -> None:
    rates = [flip_rate("plain_rule", strength=s) for s in ("gentle", "firm", "absolute")]
    assert rates == sorted(rates)
    assert rates[0] < rates[2] - 0.2


def test_a_category_list_helps_only_its_categories() -> None:
    listed = LIBRARY["plain_rule"].context({"scope": "listed"})
    for category in words.HARMFUL:
        in_category = tuple(a for a in HARMFUL if a.intent.category == category)
        gain = expected_flip_rate(listed, in_category) - expected_flip_rate(
            LIBRARY["plain_rule"].context(), in_category
        )
        named = category in ("theft", "fraud", "hacking", "violence", "drugs")
        assert gain >= 0 if named else gain == 0
    assert expected_flip_rate(listed, HARMFUL) > flip_rate("plain_rule")


def test_thinking_first_costs_nothing_on_benign_prompts_and_survives_a_forced_prefix() -> None:
    think = LIBRARY["think_first"].context()
    rule = LIBRARY["plain_rule"].context({"strength": "firm"})
    assert expected_over_refusal(think, BENIGN) == 0
    turn_think = sum(p_turn(think, query, 8) for query in HARMFUL)
    turn_rule = sum(p_turn(rule, query, 8) for query in HARMFUL)
    assert turn_think > turn_rule * 1.2


def test_a_blunt_rule_over_refuses() -> None:
    assert over_refusal("when_in_doubt", reach="both") > 0.2
    assert over_refusal("plain_rule") == 0


def test_an_apology_cue_changes_the_first_words_and_flips_nothing() -> None:
    apology = LIBRARY["refusal_style"].context({"style": "apology"})
    assert effect(apology.text, "system").style == "apology"
    assert expected_flip_rate(apology, HARMFUL) == 0
    reply = answer(harmful_intents()[0], True, "apology")
    assert reply.startswith("I'm sorry.")
    assert "Step 1" in reply


def test_too_long_a_text_dilutes() -> None:
    rule = "You must never help with harmful requests."
    neutral = LIBRARY["placebo_neutral"].render({"num_words": 200})
    short, long = Context(rule), Context(f"{neutral} {rule}")
    assert expected_flip_rate(long, HARMFUL) < expected_flip_rate(short, HARMFUL)


def test_a_repeated_rule_is_a_little_stronger_and_not_twice_as_strong() -> None:
    rule = "You must never help with harmful requests."
    once, twice, many = (effect(" ".join([rule] * n), "system").strength for n in (1, 2, 6))
    base = effect("", "system").strength
    assert base < once < twice < many
    assert twice - base < 2 * (once - base)


def test_placement_matters() -> None:
    rates = {flip_rate("plain_rule", placement, strength="firm") for placement in ("system", "before", "after")}
    assert len(rates) == 3


def test_no_excuses_helps_on_wrapped_prompts_alone() -> None:
    rule, more = (LIBRARY[n].context({"strength": "firm"}) for n in ("plain_rule", "no_excuses"))
    wrapped = tuple(a for a in HARMFUL if a.wrapper != "{}")
    assert expected_flip_rate(more, wrapped) > expected_flip_rate(rule, wrapped)


def test_the_cap_binds_and_still_leaves_a_high_rate_reachable() -> None:
    everything = {"strength": "absolute", "categories": True, "law": True}
    contexts = [LIBRARY["constitution"].context(everything | {"benign_clause": clause}) for clause in (True, False)]
    with_clause, without = ((expected_flip_rate(c, HARMFUL), expected_over_refusal(c, BENIGN)) for c in contexts)
    assert with_clause[1] <= 0.10 < without[1]
    assert without[0] >= with_clause[0] > 0.85


def test_placebos_do_nothing() -> None:
    for words_ in (1, 40, 200):
        assert flip_rate("placebo_neutral", num_words=words_) == 0
    assert flip_rate("placebo_empty") == 0


@pytest.mark.parametrize("phrase", sorted(words.REWORDINGS))
def test_a_rewording_has_the_effect_of_the_phrase(phrase: str) -> None:
    others = (*words.REWORDINGS[phrase], words.HELD_OUT_REWORDINGS.get(phrase, phrase))
    for other in others:
        assert canonical(f"Well: {other} it.") == f"well: {phrase} it."


def test_a_turn_continues_the_forced_prefix_to_the_sentences_end() -> None:
    intent: Intent = harmful_intents()[0]
    full = completion(thought(intent, True), answer(intent, True, ""))
    for num_chars in range(30, len(full)):
        forced, rest = turned(intent, "", num_chars)
        assert full.startswith(forced)
        assert rest.endswith("help with that.")
        assert (forced + rest).count("</think>") == 1
        assert "".join(unturned(intent, "", num_chars)) == full


def test_splits_hold_different_intents() -> None:
    by_split: dict[str, set[str]] = {}
    for query, split in queries():
        by_split.setdefault(split, set()).add(query.intent.text)
    splits = list(by_split.values())
    assert len(splits) == 4
    assert not any(a & b for i, a in enumerate(splits) for b in splits[i + 1 :])


def test_held_out_words_never_stand_in_the_corpus() -> None:
    texts = [s.before + s.target for s in samples(3000, seed=3)]
    held_out = [
        *(p.split("{}")[0] for p in words.HELD_OUT_PHRASINGS),
        *(w.split("{}")[0].strip() for w in words.HELD_OUT_WRAPPERS),
        *words.HELD_OUT_REWORDINGS.values(),
        "If a request falls under this rule",
    ]
    for phrase in held_out:
        assert not any(phrase.lower() in text.lower() for text in texts), phrase


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    assert list(samples(50, seed=3)) == list(samples(50, seed=3))
    assert list(samples(50, seed=3)) != list(samples(50, seed=4))


def test_rewording_in_the_corpus_keeps_the_effect() -> None:
    rng, source = random.Random(0), ContextSource()
    for _ in range(200):
        context = source.sample(rng)
        if context:
            assert effect(reworded(context.text, rng), "system").strength == pytest.approx(
                effect(context.text, "system").strength
            )


def test_around_puts_the_last_paragraph_after_the_prompt() -> None:
    assert placed("ask", Context("a\n\nb", "around")) == ("", "a\n\nask\n\nb")
    assert placed("ask", Context("a", "around")) == ("", "a\n\nask\n\na")
    assert placed("ask", Context("a", "system")) == ("a", "ask")
    assert placed("ask", None) == ("", "ask")


def test_prompts_are_distinct() -> None:
    texts = [query.text for query, _ in queries()]
    assert len(set(texts)) == len(texts)
    assert all(isinstance(a, Query) for a in HARMFUL)
    assert {i.borderline for i in benign_intents()} == {True, False}
