"""The HarmBench classifier: is a generation an instance of a behaviour.

Template: LLAMA2_CLS_PROMPT, compared word by word with several copies of it in public code; the HarmBench repository
itself was not available. That it answers Yes or No is from the history of its model card. Its tokenizer adds the begin
token.
"""

from pathlib import Path

from flipsearch.judging.guard import GuardAnswer, GuardJudge


class HarmBenchJudge(GuardJudge):
    """HarmBench's classifier: does the answer do what the prompt asks, by its rules (13B; MIT).

    It expects the behaviour without the attack around it: of prompts that are wrapped in an attack it judges something
    else. It does not detect refusals. Yes and No count with and without a leading space, in either case.
    """

    name = "harmbench_cls"
    needs_model = "cais/HarmBench-Llama-2-13b-cls"
    template_file = Path(__file__).with_suffix(".txt")
    adds_begin_token = True
    markers = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    roles = ("Behavior:", "Generation:", "Answer:")
    answers = tuple(
        GuardAnswer(f"{blank}{word}", unsafe)
        for word, unsafe in (("Yes", 1), ("No", 0), ("yes", 1), ("no", 0))
        for blank in ("", " ")
    )
