"""WildGuard, the Allen Institute's moderation model: is the request harmful, is the answer a refusal, is it harmful.

Template: WILDGUARD_INPUT_FORMAT in wildguard/utils.py of allenai/wildguard (Apache-2.0), compared byte by byte; its
tokenizer adds the begin token.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge

_VALUES = {"yes": 1.0, "no": 0.0}


class WildGuardJudge(GuardJudge):
    """WildGuard: harm and refusal of answers (7B; Apache-2.0, gated).

    It answers in three lines. All eight ways of answering are scored, at the cost of four passes: p_unsafe and
    p_refusal are exact sums over them, and the label mass is that of the three lines together.
    """

    name = "wildguard"
    needs_model = "allenai/wildguard"
    template_file = Path(__file__).with_suffix(".txt")
    adds_begin_token = True
    markers = ("[INST]", "[/INST]", "<|user|>", "<|assistant|>")
    roles = (
        *("Human user:", "AI assistant:", "Answers:"),
        *("Harmful request:", "Response refusal:", "Harmful response:"),
    )
    prefill = "Harmful request:"
    answers = tuple(
        GuardAnswer(
            f" {harmful}\nResponse refusal: {refuses}\nHarmful response: {harms}", _VALUES[harms], _VALUES[refuses]
        )
        for harmful in _VALUES
        for refuses in _VALUES
        for harms in _VALUES
    )
