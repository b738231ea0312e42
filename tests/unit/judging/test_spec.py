"""What --judge accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipsearch.core.errors import ConfigError
from flipsearch.judging.library import JudgeSpec, Member, canonical, parse_spec

WORDS = st.text(st.characters(codec="utf-8"), min_size=1)


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
        ("a(w='b+c (1), d=e.npz', x = \"it's\" )", JudgeSpec((Member("a", {"w": "b+c (1), d=e.npz", "x": "it's"}),))),
        ("'./my+judge:any.py'", JudgeSpec((Member("./my+judge:any.py"),))),
        ('a + "./b+c.py" (x=1) : all', JudgeSpec((Member("a"), Member("./b+c.py", {"x": "1"})), "all")),
        ("a(b=it's.npz)+o'c.py:any", JudgeSpec((Member("a", {"b": "it's.npz"}), Member("o'c.py")), "any")),
        ("a+C:/judges/mine.py:any", JudgeSpec((Member("a"), Member("C:/judges/mine.py")), "any")),
    ],
)
def test_reads(text: str, spec: JudgeSpec) -> None:
    assert parse_spec(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a+b", "judge 'a+b' names 2 judges but not how they decide; end it in :any, :all, :majority or :mean."),
        ("a+b:anny", "unknown rule 'anny'. Did you mean any"),
        ("a+b:majority", "a majority of 2 judges may be a tie; name an odd number."),
        ("a+b+a:majority", "judge 'a+b+a:majority' names a more than once; name each judge of a panel once."),
        ("a+a(part=answer):any", "names a more than once"),
        ("a(x=1, y=2)+ 'a'(y=2,x=1):any", "names a(x=1, y=2) more than once"),
        ("a:any", "has a rule for several judges, but names one"),
        ("a+:any", "judge 'a+:any' cannot be read"),
        ("a(b", "judge 'a(b' cannot be read"),
        ("a(b)", "got the option 'b', expected option=value."),
        ("a(b=)", "got the option 'b=', expected option=value."),
        ("a(b=1, b=2)", "the option 'b' is given twice."),
        ("a(b=1)c", "cannot be read"),
        ("a(b=c (1))", "a name or value with brackets in it must be quoted."),
        ("./a+b.py", "A path with + in it must be quoted."),
        ("'a+b:any", "got 'a, expected quotes that open and close around all of it."),
        ("a(b='c, d=1)", "got 'c, expected quotes"),
        ("a+'b'c:any", "got 'b'c, expected quotes"),
        ("a(b='c'", "cannot be read"),
        ("a(b='')", "got the option 'b=''', expected option=value."),
        ("''", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_spec(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.sampled_from("'\""), WORDS, WORDS)
def test_quoted_text_comes_through_unchanged(quote: str, name: str, value: str) -> None:
    name, value = name.replace(quote, "-"), value.replace(quote, "-")
    quoted, options = f"{quote}{name}{quote}", f"(o={quote}{value}{quote}, p=1)"
    assert parse_spec(quoted) == JudgeSpec((Member(name),))
    assert parse_spec(quoted + options) == JudgeSpec((Member(name, {"o": value, "p": "1"}),))
    members = Member(name, {"o": value, "p": "1"}), Member(name)
    assert parse_spec(f"{quoted}{options}+{quoted}:any") == JudgeSpec(members, "any")


@given(
    st.lists(st.tuples(WORDS, st.dictionaries(st.sampled_from("abc"), WORDS)), min_size=1),
    st.sampled_from("'\""),
)
def test_a_spec_is_read_as_it_is_written(members: list[tuple[str, dict[str, str]]], quote: str) -> None:
    plain = [
        (name.replace(quote, "-"), {o: v.replace(quote, "-") for o, v in options.items()}) for name, options in members
    ]
    different = {str(member): member for member in (Member(*pair) for pair in plain)}
    spec = JudgeSpec(tuple(different.values()), "any" if len(different) > 1 else "")
    assert parse_spec(str(spec)) == spec
    assert canonical(str(spec)) == str(spec)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("compact()", "compact"),
        ("refusal(part=answer)", "refusal"),
        ("refusal(part='answer', x=1)", "refusal(x=1)"),
        ("refusal(part=thought)", "refusal(part=thought)"),
        (" 'compact' ", "compact"),
        ("a + b : any", "a+b:any"),
        ("guard(reading=loose,model = O/N-0.6B)", "guard(model=O/N-0.6B, reading=loose)"),
        ("a(m=http://h:80/v1#n)", "a(m=http://h:80/v1#n)"),
        ('a(w="b (1).npz")', "a(w='b (1).npz')"),
    ],
)
def test_texts_of_one_meaning_have_one_spelling(text: str, same: str) -> None:
    assert canonical(text) == same
