"""ShieldGemma, Google's content moderation model: does an answer violate a guideline.

Template and guidelines: the prompt-response form of responsible/shieldgemma_on_huggingface.ipynb in
google-gemini/gemma-cookbook (Apache-2.0), compared byte by byte, its double blank included; its tokenizer puts the
begin token in front. Guidelines: shieldgemma_guidelines.txt, one a line.
"""

from pathlib import Path

from flipsearch.judging.guard.judge import GuardJudge
from flipsearch.judging.guard.prompts import Answer

_GUIDELINES = Path(__file__).with_name("shieldgemma_guidelines.txt")


class ShieldGemmaJudge(GuardJudge):
    """ShieldGemma: dangerous, hateful, sexual or harassing answers (2B, 9B, 27B; Gemma licence, gated).

    One question a guideline, four an exchange: p_unsafe is the worst guideline's. It does not tell refusals.
    """

    name = "shieldgemma"
    needs_model = "google/shieldgemma-2b"
    template_file = Path(__file__).with_suffix(".txt")
    begins = True
    markers = ("Our safety principle is defined in the below:",)
    roles = ("Human Question:", "Chatbot Response:", '* "No ')
    answers = (Answer("Yes", unsafe=1), Answer("No", unsafe=0))
    variants = tuple({"guideline": line} for line in _GUIDELINES.read_text(encoding="utf-8").splitlines())
