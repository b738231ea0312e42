"""Llama Guard 4, Meta's safety classifier of 14 hazards; used for text alone, although it can also read images.

Template: not checked against the original, which is gated. It is Llama Guard 3's text with the 14 categories of the
model card (PurpleLlama, Llama-Guard4/12B/MODEL_CARD.md) in their short form, between the header tokens of Llama 4.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge


class LlamaGuard4Judge(GuardJudge):
    """Llama Guard 4: safe or unsafe by 14 hazard categories (12B; Llama 4 licence, gated).

    Its template is not checked against the original. Only the text part of its weights is used. It does not detect
    refusals.
    """

    name = "llama_guard_4"
    needs_model = "meta-llama/Llama-Guard-4-12B"
    template_file = Path(__file__).with_suffix(".txt")
    strips_prompt = True
    markers = (
        *("<BEGIN CONVERSATION>", "<END CONVERSATION>"),
        *("<BEGIN UNSAFE CONTENT CATEGORIES>", "<END UNSAFE CONTENT CATEGORIES>"),
    )
    roles = ("User:", "Agent:")
    prefill = "\n\n"
    answers = (GuardAnswer("safe", unsafe=0), GuardAnswer("unsafe", unsafe=1))
