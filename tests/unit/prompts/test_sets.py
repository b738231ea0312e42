"""Prompt sets: the built-in ones, the user's files with their labels, and the public sets as they are."""

from collections import Counter
from pathlib import Path

import pytest

from flipsearch.core.errors import PromptError
from flipsearch.core.records import Kind, Prompt
from flipsearch.prompts.sets import PromptSet, count_kinds, list_sets, load_prompts
from flipsearch.prompts.splitting import find_clusters

PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "prompts"


def write(folder: Path, content: str, name: str = "a.csv") -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def of_kind(prompts: PromptSet, kind: Kind) -> list[Prompt]:
    return [prompt for prompt in prompts.prompts if prompt.kind == kind]


def public(name: str) -> str:
    if not (PUBLIC / name).exists():
        pytest.skip(f"the public prompt sets are not at hand: {name} in ../shared/data/prompts")
    return str(PUBLIC / name)


def test_starter_has_what_its_name_promises() -> None:
    starter = load_prompts("starter")
    assert count_kinds(starter.prompts) == {"harmful": 309, "benign": 450, "borderline": 150} == list_sets()["starter"]
    assert len({prompt.category for prompt in of_kind(starter, "harmful")}) >= 20
    assert all(prompt.category for prompt in starter.prompts)
    assert starter.notes == ()


@pytest.mark.parametrize("name", ["target_response", "gpt4_response", "Model Answer", "response_1", "generated_text"])
def test_a_label_beside_an_answer_of_any_name_is_not_the_prompts(name: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=f"'label' stands beside '{name}'.*prompt_label"):
        load_prompts(write(tmp_path, f"prompt,{name},label\nHow?,No.,safe\n"))


@pytest.mark.parametrize("rows", ["kind,label\nx,harmful,benign", "is_harmful,is_benign\nx,0,0"])
def test_labels_that_disagree_are_refused(rows: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"a\.csv:2: .* says .* says .*: drop or rename"):
        load_prompts(write(tmp_path, f"prompt,{rows}\n"))


@pytest.mark.parametrize("column", ["type\na b,jailbreak\nc d,benign", "jailbreak\na b,True\nc d,False"])
def test_a_column_of_another_name_that_says_otherwise_is_refused(column: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"prompt,{column}\n")
    with pytest.raises(PromptError, match=r"a\.csv:3: given as harmful, but column '(type|jailbreak)' says '"):
        load_prompts(harmful=path)
    with pytest.raises(PromptError, match=r"a\.csv:2: given as benign, but column '(type|jailbreak)' says '"):
        load_prompts(benign=path)


@pytest.mark.parametrize("flag", ["toxic", "is_malicious", "Is Harmful"])
def test_a_flag_of_harm_labels_the_prompts(flag: str, tmp_path: Path) -> None:
    result = load_prompts(write(tmp_path, f"prompt,{flag}\na b,1\nc d,0\n"))
    assert {prompt.text: prompt.kind for prompt in result.prompts} == {"a b": "harmful", "c d": "benign"}


def test_rows_without_a_published_label_are_left_out_and_said(tmp_path: Path) -> None:
    result = load_prompts(write(tmp_path, "prompt,prompt_harm_label,language\na b,harmful,en\nc d,,en\n"))
    assert [prompt.text for prompt in result.prompts] == ["a b"]
    assert any("1 rows that are neither left out" in note for note in result.notes)


def test_what_is_beside_a_prompt_is_sent_or_noted(tmp_path: Path) -> None:
    content = "prompt,goal,context,system_prompt,group\nSum up,g,A tale.,Be brief.,asian\n"
    result = load_prompts(benign=write(tmp_path, content))
    assert result.prompts[0].text == "A tale.\n\n---\n\nSum up"
    assert "a.csv: prompts from column 'prompt' and not from 'goal'" in result.notes
    assert "a.csv: 1 rows with a system text, which is left out" in result.notes
    (groups,) = set(result.notes) - set(result.notes_beside_groups)
    assert groups.startswith("a.csv: column 'group' is read: prompts of one group stay in one split")


def test_what_holds_for_every_study_of_a_built_in_set_is_no_note() -> None:
    pocket = load_prompts("pocket")
    assert any(prompt.group for prompt in pocket.prompts)
    assert pocket.notes == pocket.notes_beside_groups


def test_a_companion_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "context": {"title": ["t"]}}', encoding="utf-8")
    with pytest.raises(PromptError, match=r"a\.jsonl:1: column 'context' holds dict, expected text"):
        load_prompts(benign=str(tmp_path / "a.jsonl"))


def test_what_an_instruction_speaks_of_is_sent_with_it_and_rendered_texts_are_not_taken(tmp_path: Path) -> None:
    content = "instruction,input,output,text\nSum up,A long tale.,x,Below is an instruction\n"
    assert load_prompts(benign=write(tmp_path, content)).prompts[0].text == "A long tale.\n\n---\n\nSum up"


def test_a_separator_line_and_a_json_object_are_known(tmp_path: Path) -> None:
    assert load_prompts(write(tmp_path, "sep=;\nprompt;label\na, b;harmful\n")).prompts[0].text == "a, b"
    with pytest.raises(PromptError, match=r"one JSON object, expected an array .*jq"):
        load_prompts(harmful=write(tmp_path, '{\n "data": []\n}', "a.json"))
    mt_bench = '{"question_id": 81, "category": "writing", "turns": ["Compose"]}'
    assert load_prompts(benign=write(tmp_path, mt_bench, "b.jsonl")).prompts[0].kind == "benign"


def test_starter_has_no_near_duplicates() -> None:
    starter = load_prompts("starter")
    assert len(set(find_clusters(starter.prompts))) == len(starter.prompts)


@pytest.mark.parametrize("name", sorted(list_sets()))
def test_every_built_in_set_has_both_kinds_in_search_confirm_and_evaluation(name: str) -> None:
    counts = Counter[tuple[str | None, str]]((prompt.split, prompt.kind) for prompt in load_prompts(name).prompts)
    splits = ("search", "confirm", "evaluation")
    assert all(counts[split, kind] >= 20 for split in splits for kind in ("harmful", "benign"))


@pytest.mark.parametrize(
    ("name", "num_prompts", "repeats"),
    [
        ("harmbench_val.csv", 60, []),
        ("strongreject.csv", 313, []),
        ("advbench.csv", 520, []),
        ("jailbreakbench_harmful.csv", 100, []),
    ],
)
def test_public_sets_of_harmful_prompts_load_as_they_are(name: str, num_prompts: int, repeats: list[str]) -> None:
    prompts = load_prompts(harmful=public(name))
    assert count_kinds(prompts.prompts) == {"harmful": num_prompts, "benign": 0, "borderline": 0}
    assert [note for note in prompts.notes if "repeated" in note] == repeats
    assert {prompt.source for prompt in prompts.prompts} == {name}


def test_the_goal_and_not_its_short_name_is_the_prompt() -> None:
    prompts = load_prompts(harmful=public("jailbreakbench_harmful.csv"), benign=public("jailbreakbench_benign.csv"))
    assert count_kinds(prompts.prompts) == {"harmful": 100, "benign": 100, "borderline": 0}
    assert all(" " in prompt.text for prompt in prompts.prompts)
    assert len({prompt.category for prompt in prompts.prompts}) == 10


def test_harmbench_is_sent_with_its_contexts_and_without_copyright(tmp_path: Path) -> None:
    head = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    rows = (
        'Do one,standard,theft,,,a\nUse the text,contextual,fraud,,"A text, in\ntwo lines",b\nSing it,copyright,x,,,c\n'
    )
    prompts = load_prompts(write(tmp_path, head + rows))
    assert {prompt.text: prompt.category for prompt in prompts.prompts} == {
        "Do one": "theft",
        "A text, in\ntwo lines\n\n---\n\nUse the text": "fraud",
    }
    notes = "\n".join(prompts.notes)
    assert "1 rows requested with the text in 'ContextString'" in notes
    assert "1 rows copyright behaviours" in notes


def test_xstest_is_routed_by_its_labels() -> None:
    path = public("xstest.csv")
    assert count_kinds(load_prompts(harmful=path).prompts) == {"harmful": 200, "benign": 0, "borderline": 0}
    assert count_kinds(load_prompts(benign=path).prompts) == {"harmful": 0, "benign": 250, "borderline": 250}
    both = load_prompts(path)
    assert count_kinds(both.prompts) == {"harmful": 200, "benign": 250, "borderline": 250}
    assert "xstest.csv: 250 x safe -> benign, 200 x unsafe -> harmful" in both.notes
    assert any("250 rows of the other kind left out" in note for note in load_prompts(harmful=path).notes)


def test_labels_of_public_training_sets_are_understood(tmp_path: Path) -> None:
    labels = ["vanilla_harmful", "adversarial_harmful", "vanilla_benign", "adversarial_benign", "Safe", "UNSAFE"]
    rows = "".join(f"request about topic{index},{label}\n" for index, label in enumerate(labels))
    prompts = load_prompts(write(tmp_path, "prompt,label\n" + rows))
    assert count_kinds(prompts.prompts) == {"harmful": 3, "benign": 3, "borderline": 0}
    assert "1 x adversarial_harmful -> harmful" in prompts.notes[0]


def test_an_unknown_label_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"a\.csv:3: unknown label 'vanila_harmful' in column 'label'"):
        load_prompts(write(tmp_path, "prompt,label\none,benign\ntwo,vanila_harmful\n"))
    with pytest.raises(PromptError, match=r"a\.csv:2: no label in column 'label'"):
        load_prompts(write(tmp_path, "prompt,label\none,\n"))


def test_an_unknown_label_in_a_file_given_as_harmful_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="unknown label 'maybe'"):
        load_prompts(harmful=write(tmp_path, "prompt,label\none,maybe\n"))


@pytest.mark.parametrize(
    ("column", "values", "harmful"),
    [
        ("is_harmful", ("1", "0"), "one"),
        ("is_harmful", ("1.0", "0.0"), "one"),
        ("Benign", ("true", "FALSE"), "two"),
        ("unsafe", ("no", "yes"), "two"),
        ("is_safe", ("T", "F"), "two"),
    ],
)
def test_zero_and_one_count_where_the_column_says_what_they_mean(
    tmp_path: Path, column: str, values: tuple[str, str], harmful: str
) -> None:
    path = write(tmp_path, f"prompt,{column}\none,{values[0]}\ntwo,{values[1]}\n")
    prompts = load_prompts(path)
    assert [prompt.text for prompt in of_kind(prompts, "harmful")] == [harmful]
    assert len(of_kind(prompts, "benign")) == 1


def test_zero_and_one_in_a_label_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"unknown label '1' in column 'label'\. Rename the column to what 1 means"):
        load_prompts(write(tmp_path, "prompt,label\none,1\n"))


def test_a_file_without_labels_needs_a_flag(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="has no label column"):
        load_prompts(write(tmp_path, "prompt,n\none,1\n"))


def test_a_file_that_contradicts_its_flag_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"given as harmful, but it says itself that no row is .*safe -> benign"):
        load_prompts(harmful=write(tmp_path, "prompt,label\none,safe\n"))


def test_empty_texts_and_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    prompts = load_prompts(harmful=write(tmp_path, "n,prompt\n1,one\n2,  \n3,one \n4,two\n"))
    assert sorted(prompt.text for prompt in prompts.prompts) == ["one", "two"]
    assert {"1 repeated prompts left out", "1 rows without text left out"} < set(prompts.notes)


def test_texts_that_look_the_same_are_repeats(tmp_path: Path) -> None:
    twins = "prompt\nöffnen\no\u0308ffnen\nöff\u200bnen\n\ufeff öffnen\n"
    prompts = load_prompts(harmful=write(tmp_path, twins))
    assert [prompt.text for prompt in prompts.prompts] == ["öffnen"]
    assert "3 repeated prompts left out" in prompts.notes
    with pytest.raises(PromptError, match="given both as harmful and as benign"):
        load_prompts(write(tmp_path, "prompt,label\nopen it,harmful\nopen\u2060 it,benign\n"))


def test_a_column_of_empty_texts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="all 2 rows are empty in column 'prompt'"):
        load_prompts(harmful=write(tmp_path, "n,prompt\n1,\n2,\n"))


def test_a_text_of_both_kinds_is_an_error(tmp_path: Path) -> None:
    harmful, benign = write(tmp_path, "prompt\nzero\none\n"), write(tmp_path, "prompt\none\n", "b.csv")
    with pytest.raises(PromptError, match=r"1 texts are given both .* harmful at .*a\.csv:3, benign at .*b\.csv:2"):
        load_prompts(harmful=harmful, benign=benign)


def test_texts_keep_their_inner_blanks_and_breaks(tmp_path: Path) -> None:
    prompts = load_prompts(harmful=write(tmp_path, 'prompt\n"one\n\ttwo  three {{x}}"\n'))
    assert prompts.prompts[0].text == "one\n\ttwo  three {{x}}"


def test_a_text_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"a\.jsonl:1: column 'prompt' holds int, expected text"):
        load_prompts(harmful=write(tmp_path, '{"prompt": 3}\n', "a.jsonl"))


def test_a_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt,other\none,two\n")
    assert load_prompts(harmful=[f"{path}:other"]).prompts[0].text == "two"


def test_splits_of_the_file_are_kept_and_foreign_ones_are_not_used(tmp_path: Path) -> None:
    ours = load_prompts(harmful=write(tmp_path, "prompt,split\none,training\ntwo,evaluation\n"))
    assert {prompt.text: prompt.split for prompt in ours.prompts} == {"one": "training", "two": "evaluation"}
    assert ours.notes == ("a.csv: prompts from column 'prompt'", "a.csv: 2 x given as harmful -> harmful")
    theirs = load_prompts(harmful=write(tmp_path, "prompt,split\none,train\ntwo,test\n"))
    assert {prompt.split for prompt in theirs.prompts} == {"search", "confirm"}  # two prompts fill no more
    assert any("'split' names none of our splits" in note for note in theirs.notes)


def test_a_wrong_split_among_ours_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"a\.csv:3: unknown split 'serch'\. Did you mean search"):
        load_prompts(harmful=write(tmp_path, "prompt,split\none,search\ntwo,serch\n"))


def test_an_empty_split_is_said(tmp_path: Path) -> None:
    prompts = load_prompts(harmful=write(tmp_path, "prompt\nhow to pick a lock\nHow do I pick locks?\n"))
    assert {prompt.split for prompt in prompts.prompts} == {"search"}
    assert any("split 'confirm' is empty" in note for note in prompts.notes)
    assert any("split 'evaluation' is empty" in note for note in prompts.notes)


def test_borderline_is_for_benign_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "text,kind,borderline\none,benign,1\ntwo,benign,\n")
    assert count_kinds(load_prompts(path).prompts) == {"harmful": 0, "benign": 2, "borderline": 1}
    with pytest.raises(PromptError, match="only benign ones can be"):
        load_prompts(write(tmp_path, "text,kind,borderline\none,harmful,1\n"))


def test_sets_and_files_can_be_joined(tmp_path: Path) -> None:
    joined = load_prompts("starter", harmful=write(tmp_path, "prompt\none more request of my own\n"))
    assert count_kinds(joined.prompts)["harmful"] == 310
    assert joined.name == "starter+a.csv"


def test_an_unknown_set_offers_near_names() -> None:
    with pytest.raises(PromptError, match=r"unknown prompt set 'startr'\. Did you mean starter"):
        load_prompts("startr")


def test_no_prompts_at_all_is_an_error() -> None:
    with pytest.raises(PromptError, match="no prompts given: name a set"):
        load_prompts()


def test_the_order_of_rows_and_files_changes_nothing(tmp_path: Path) -> None:
    first = write(tmp_path, "prompt\n" + "".join(f"request about topic{n}\n" for n in range(20)))
    second = write(tmp_path, "prompt\n" + "".join(f"request about topic{n}\n" for n in reversed(range(20))), "a2.csv")
    loaded, other = load_prompts(harmful=first), load_prompts(harmful=second)
    assert loaded.prompts_id == other.prompts_id
