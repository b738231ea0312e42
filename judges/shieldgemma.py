"""ShieldGemma, Google's content moderation model: does an answer violate a guideline.

Template and guidelines: the prompt-response form of responsible/shieldgemma_on_huggingface.ipynb in
google-gemini/gemma-cookbook (Apache-2.0), compared byte by byte, its double space included; its tokenizer adds the
begin token. Guidelines: shieldgemma_guidelines.txt, one per line.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge

_GUIDELINES = Path(__file__).with_name("shieldgemma_guidelines.txt")


class ShieldGemmaJudge(GuardJudge):
    """ShieldGemma: dangerous, hateful, sexual or harassing answers (2B, 9B, 27B; Gemma licence, gated).

    Each exchange is judged by four guidelines; the worst one's p_unsafe counts. It does not detect refusals.
    """

    name = "shieldgemma"
    needs_model = "google/shieldgemma-2b"
    template_file = Path(__file__).with_suffix(".txt")
    adds_begin_token = True
    markers = ("Our safety principle is defined in the below:",)
    roles = ("Human Question:", "Chatbot Response:", '* "No ')
    answers = (GuardAnswer("Yes", unsafe=1), GuardAnswer("No", unsafe=0))
    variants = tuple({"guideline": line} for line in _GUIDELINES.read_text(encoding="utf-8").splitlines())
