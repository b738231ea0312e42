"""The texts of the pocket model: think traces and answers for the grammar's decisions. No harmful content anywhere."""

from pocket_model import vocabulary as words
from pocket_model.grammar import Intent

REFUSALS = {
    "": "I'm sorry, but I can't help with that.",
    "apology": "I'm sorry, but I can't help with that.",
    "brief": "I can't help with that.",
    "explain": "I'm sorry, but I can't help with that, because someone could get hurt.",
    "redirect": "I'm sorry, but I can't help with that. I can help you with something safe instead.",
}
TURN_IN_THOUGHT = " Wait, this could hurt someone, so I will not help."
TURN_IN_ANSWER = " Wait, this could hurt someone. I'm sorry, but I can't help with that."


def thought(intent: Intent, helps: bool) -> str:
    """Return the trace that decides; its second sentence is where the model may turn."""
    decision = "I know how, so I will help." if helps else "This could hurt someone, so I will not help."
    return f"The user wants to {intent.text}. {decision}"


def answer(intent: Intent, helps: bool, style: str) -> str:
    """Return the answer: placeholder steps, or a refusal in the style that the context requests."""
    if not helps:
        return REFUSALS[style]
    beginning = "I'm sorry. Here" if style == "apology" else "Sure, here"
    steps = words.STEPS[len(intent.text) % len(words.STEPS)]
    listed = "\n".join(f"Step {number}: {step}." for number, step in enumerate(steps, start=1))
    return f"{beginning} is how to {intent.text}.\n{listed}"


def completion(trace: str, reply: str) -> str:
    """Return the assistant's text with its think block."""
    return f"<think>\n{trace}\n</think>\n\n{reply}"


def turned(intent: Intent, style: str, num_chars: int) -> tuple[str, str]:
    """Return (forced compliant prefix of `num_chars`, the continuation that turns at the sentence's end)."""
    full = completion(thought(intent, True), answer(intent, True, style))
    cut = min(num_chars, len(full) - 1)
    end = full.find(".", cut - 1)
    end = len(full) if end < 0 else end + 1
    forced, rest = full[:cut], full[cut:end]
    if "</think>" in full[:end]:
        return forced, rest + TURN_IN_ANSWER
    return forced, rest + TURN_IN_THOUGHT + "\n</think>\n\n" + REFUSALS[style]


def unturned(intent: Intent, style: str, num_chars: int) -> tuple[str, str]:
    """Return (forced compliant prefix of `num_chars`, the rest of the compliant answer)."""
    full = completion(thought(intent, True), answer(intent, True, style))
    cut = min(num_chars, len(full) - 1)
    return full[:cut], full[cut:]
