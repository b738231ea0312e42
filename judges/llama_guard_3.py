"""Llama Guard 3, Meta's safety classifier of 13 hazards (MLCommons taxonomy).

Template: the chat template inside the 1B weights, compared byte by byte with its copy in huggingface.js (ollama-utils,
the templates of GGUF files); the 8B's own differs (14 categories, no blank before its last token). Meta's own files are
gated and were not read.
"""

from pathlib import Path

from flipsearch.judging.guard.judge import GuardJudge
from flipsearch.judging.guard.prompts import Answer


class LlamaGuard3Judge(GuardJudge):
    """Llama Guard 3: safe or unsafe by 13 hazard categories (1B or 8B; Llama 3.2 or 3.1 licence, gated).

    The 8B model is asked in the 1B's words: `model=meta-llama/Llama-Guard-3-8B`. It does not tell refusals.
    """

    name = "llama_guard_3"
    needs_model = "meta-llama/Llama-Guard-3-1B"
    template_file = Path(__file__).with_suffix(".txt")
    trims = True
    markers = (
        *("<BEGIN CONVERSATION>", "<END CONVERSATION>"),
        *("<BEGIN UNSAFE CONTENT CATEGORIES>", "<END UNSAFE CONTENT CATEGORIES>"),
    )
    roles = ("User:", "Agent:")
    begun = "\n\n"
    answers = (Answer("safe", unsafe=0), Answer("unsafe", unsafe=1))
