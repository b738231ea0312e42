"""Llama Guard 3, Meta's safety classifier of 13 hazards (MLCommons taxonomy).

Template: the chat template in the 1B weights, compared byte by byte with its copy in huggingface.js (ollama-utils, the
templates of GGUF files); the 8B's own differs (14 categories, no space before its last token). Meta's own files are
gated and were not available.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge


class LlamaGuard3Judge(GuardJudge):
    """Llama Guard 3: safe or unsafe by 13 hazard categories (1B or 8B; Llama 3.2 or 3.1 licence, gated).

    The 8B model (`model=meta-llama/Llama-Guard-3-8B`) gets the 1B's prompt. It does not detect refusals.
    """

    name = "llama_guard_3"
    needs_model = "meta-llama/Llama-Guard-3-1B"
    template_file = Path(__file__).with_suffix(".txt")
    strips_prompt = True
    markers = (
        *("<BEGIN CONVERSATION>", "<END CONVERSATION>"),
        *("<BEGIN UNSAFE CONTENT CATEGORIES>", "<END UNSAFE CONTENT CATEGORIES>"),
    )
    roles = ("User:", "Agent:")
    prefill = "\n\n"
    answers = (GuardAnswer("safe", unsafe=0), GuardAnswer("unsafe", unsafe=1))
