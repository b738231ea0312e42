"""The model that rewrites contexts, at the study's ledger: what it has written is not asked again.

Its replies are rollouts as any other, under its own model id, but no answers to the study's prompts: nobody judges
them, and they are in none of the study's counts. How many there are is said in a note. A failed one is tried again by
the next run, as any failed rollout is.
"""

from flipsearch.bench import Bench
from flipsearch.protocols import Backend
from flipsearch.records import Rollout
from flipsearch.searching.operators.rewrite import WRITING, asked, reply_of


class Rewriter:
    """Instruction -> reply, for the operator `rewrite`; a BackendError where the model fails.

    It takes from `bench` all but the model.
    """

    def __init__(self, backend: Backend, bench: Bench) -> None:
        self._bench = Bench(backend, bench.judge, bench.ledger, WRITING, bench.progress, bench.tell)
        self._bench.phase = "rewriting"
        self._replies: dict[str, Rollout] = {}

    def __call__(self, instruction: str) -> str:
        """Return the reply, from the ledger if it is there."""
        (rollout,) = self._bench.rollouts([asked(instruction)])
        self._replies[rollout.rollout_id] = rollout
        return reply_of(rollout)

    def notes(self) -> list[str]:
        """Return what the reader must know of what was asked: the same whenever it was written."""
        replies = self._replies.values()
        if not replies:
            return []
        num_tokens = sum(rollout.num_generated for rollout in replies)
        failed = [rollout.error for rollout in replies if rollout.finish_reason == "error"]
        why = f" {len(failed)} gave no reply ({' '.join(failed[0].split())[:120]})." if failed else ""
        return [
            f"The rewriter was asked for {len(replies)} contexts and wrote {num_tokens:,} tokens, which are not among "
            f"the rollouts and tokens of the study.{why}"
        ]
