"""Contract tests for plug-in authors: subclass one class, say how to build your object, and run pytest.

    class TestMyJudge(JudgeContract):
        def make_judge(self) -> Judge:
            return MyJudge()

The classes need pytest only to be collected; each test is plain asserts on what a user of the plug-in can see.
"""

from flipsearch.testing.backends import BackendContract
from flipsearch.testing.judging import JudgeContract
from flipsearch.testing.operators import HOSTILE_TEXTS, OperatorContract

__all__ = ["HOSTILE_TEXTS", "BackendContract", "JudgeContract", "OperatorContract"]
