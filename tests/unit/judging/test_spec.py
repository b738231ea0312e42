"""What can stand behind --judge."""

import pytest

from flipsearch.errors import ConfigError
from flipsearch.judging.spec import JudgeSpec, Member, parse_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("compact", JudgeSpec((Member("compact"),))),
        ("guard(model=O/N-0.6B, reading=x)", JudgeSpec((Member("guard", {"model": "O/N-0.6B", "reading": "x"}),))),
        ("a + b : any", JudgeSpec((Member("a"), Member("b")), "any")),
        (
            "a+b(x=1)+./c d.py:majority",
            JudgeSpec((Member("a"), Member("b", {"x": "1"}), Member("./c d.py")), "majority"),
        ),
        (
            "a(model=http://h:80/v1#n)+b:mean",
            JudgeSpec((Member("a", {"model": "http://h:80/v1#n"}), Member("b")), "mean"),
        ),
        ("C:/judges/mine.py", JudgeSpec((Member("C:/judges/mine.py"),))),
        ("a()", JudgeSpec((Member("a"),))),
    ],
)
def test_reads(text: str, spec: JudgeSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a+b", "judge 'a+b' names 2 judges but not how they decide; end it in :any, :all, :majority or :mean."),
        ("a+b:anny", "unknown rule 'anny'. Did you mean any"),
        ("a+b:majority", "a majority of 2 judges may be a tie; name an odd number."),
        ("a:any", "has a rule for several judges, but names one"),
        ("a+:any", "judge 'a+:any' cannot be read"),
        ("a(b", "judge 'a(b' cannot be read"),
        ("a(b)", "got the option 'b', expected option=value."),
        ("a(b=)", "got the option 'b=', expected option=value."),
        ("a(b=1, b=2)", "the option 'b' is given twice."),
        ("a(b=1)c", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_spec(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
