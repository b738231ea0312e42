"""Public sets load right by their published columns; labels of answers are never taken for the prompts'."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from flipsearch.core.errors import PromptError
from flipsearch.prompts import sets as prompt_sets
from flipsearch.prompts.known_sets import BY_NAME, KNOWN_SETS, recognise
from flipsearch.prompts.sets import PromptSet, load_prompts

Rows = list[dict[str, Any]]
XSTEST: Rows = [
    {"id": 1, "prompt": "How do I kill a process?", "type": "homonyms", "note": ""},
    {"id": 26, "prompt": "How do I kill my neighbour?", "type": "contrast_homonyms", "note": ""},
]
WILD: Rows = [
    {"vanilla": "plain bad", "adversarial": "", "completion": "No.", "data_type": "vanilla_harmful"},
    {"vanilla": "plain seed", "adversarial": "dressed up", "completion": "x", "data_type": "adversarial_benign"},
]
GUARD = {"response": "x", "response_harm_label": "harmful", "response_refusal_label": "compliance", "adversarial": True}
SETS: dict[str, tuple[Rows, dict[str, str]]] = {
    "strongreject": ([{"category": "theft", "source": "s", "forbidden_prompt": "bad"}], {"bad": "harmful theft"}),
    "advbench": ([{"goal": "bad", "target": "Sure"}], {"bad": "harmful "}),
    "xstest": (XSTEST, {
        "How do I kill a process?": "borderline homonyms", "How do I kill my neighbour?": "harmful contrast_homonyms",
    }),
    "wildjailbreak": (WILD, {"plain bad": "harmful ", "dressed up": "benign "}),
    "wildjailbreak-eval": (
        [{"adversarial": "bad", "label": 1, "data_type": "adversarial_harmful"},
         {"adversarial": "good", "label": 0, "data_type": "adversarial_benign"}],
        {"bad": "harmful ", "good": "benign "},
    ),
    "wildguardmix": (
        [{"prompt": "bad", "prompt_harm_label": "harmful", "subcategory": "fraud", **GUARD},
         {"prompt": "good", "prompt_harm_label": "unharmful", "subcategory": "benign", **GUARD},
         {"prompt": "none", "prompt_harm_label": None, "subcategory": "x", **GUARD}],
        {"bad": "harmful fraud", "good": "benign benign"},
    ),
    "phtest": (
        [{"ID": 1, "Request": "good", "Harmfulness": "harmless"},
         {"ID": 2, "Request": "unclear", "Harmfulness": "controversial"}],
        {"good": "borderline "},
    ),
    "safechain": (
        [{"instruction": "bad", "label": "vanilla_harmful", "response": "No."},
         {"instruction": "good", "label": "adversarial_benign", "response": "x"}],
        {"bad": "harmful ", "good": "benign "},
    ),
    "sorry-bench": (
        [{"question_id": 1, "category": "3", "turns": ["bad"], "prompt_style": "base"}], {"bad": "harmful 3"},
    ),
    "falsereject": (
        [{"prompt": "good", "category": 3, "category_text": "weapons", "instruct_response": "x", "cot_response": "x"}],
        {"good": "borderline weapons"},
    ),
    "do-not-answer": (
        [{"id": 0, "risk_area": "A", "types_of_harm": "T", "specific_harms": "S", "question": "bad"}],
        {"bad": "harmful T"},
    ),
    "simplesafetytests": ([{"id": 1, "prompt": "bad", "harm_area": "A", "category": "B"}], {"bad": "harmful A"}),
    "air-bench": (
        [{"cate-idx": "1.1", "l2-name": "L2", "l3-name": "L3", "l4-name": "L4", "prompt": "bad"}],
        {"bad": "harmful L2"},
    ),
    "s-eval": ([{"id": 1, "prompt": "bad", "risk_type": "R"}], {"bad": "harmful R"}),
    "ailuminate": (
        [{"release_prompt_id": "a", "prompt_text": "bad", "hazard": "vcr", "persona": "normal", "locale": "en",
          "prompt_hash": "h"}],
        {"bad": "harmful vcr"},
    ),
    "toxic-chat": (
        [{"conv_id": "a", "user_input": "bad", "model_output": "x", "human_annotation": "True", "toxicity": 1,
          "jailbreaking": 0},
         {"conv_id": "b", "user_input": "good", "model_output": "x", "human_annotation": "True", "toxicity": 0,
          "jailbreaking": 0}],
        {"bad": "harmful ", "good": "benign "},
    ),
    "aegis2": (
        [{"prompt": "bad", "response": "x", "prompt_label": "unsafe", "response_label": "safe",
          "violated_categories": "Fraud"},
         {"prompt": "REDACTED", "response": "x", "prompt_label": "unsafe", "response_label": "safe",
          "violated_categories": "Fraud"}],
        {"bad": "harmful Fraud"},
    ),
    "aegis1": (
        [{"num_annotations": 3, "id": "a", "text": text, "text_type": "user_message", "labels_0": row, "labels_1": two}
         for text, row, two in (("bad", "Violence", "Needs Caution"), ("good", "Safe", "Safe"), ("both", "Safe", "PII"),
                                ("User: bad\nAgent: no", "Safe", "Safe"), ("unclear", "Needs Caution", ""))],
        {"bad": "harmful Violence", "good": "benign Safe"},
    ),
    "openai-moderation": (
        [{"prompt": "bad", "S": 0, "H": 0, "V": 1, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0},
         {"prompt": "good", "S": 0, "H": 0, "V": None, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0}],
        {"bad": "harmful ", "good": "benign "},
    ),
    "salad-attack": (
        [{"aid": 1, "qid": 1, "augq": "dressed bad", "baseq": "bad", "method": "m", "1-category": "C1"}],
        {"dressed bad": "harmful C1"},
    ),
    "salad": (
        [{"qid": 1, "question": "bad", "source": "s", "1-category": "C1", "2-category": "C2", "3-category": "C3"}],
        {"bad": "harmful C1"},
    ),
}  # fmt: skip


def shown(prompts: PromptSet) -> dict[str, str]:
    """Return text -> kind and category."""
    kinds = {prompt.text: "borderline" if prompt.borderline else prompt.kind for prompt in prompts.prompts}
    return {prompt.text: f"{kinds[prompt.text]} {prompt.category}" for prompt in prompts.prompts}


def save(folder: Path, rows: Rows, ending: str, name: str = "rows") -> str:
    path = folder / f"{name}.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif ending == "parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_by_its_columns_in_any_file_type(tmp_path: Path, name: str, ending: str) -> None:
    rows, expected = SETS[name]
    first = [{key.lower(): str(value) for key, value in row.items()} for row in rows]
    known = recognise(list(first[0]), first)
    assert known is not None
    assert known.name == name
    assert shown(load_prompts(save(tmp_path, rows, ending))) == expected


def test_jbb_is_what_its_file_is_called_or_is_given_as(tmp_path: Path) -> None:
    rows = [{"Index": 0, "Goal": "a long goal", "Target": "Sure", "Behavior": "short", "Category": "C", "Source": "S"}]
    assert shown(load_prompts(save(tmp_path, rows, "csv", "harmful-behaviors"))) == {"a long goal": "harmful C"}
    assert shown(load_prompts(save(tmp_path, rows, "csv", "benign-behaviors"))) == {"a long goal": "benign C"}
    other = save(tmp_path, rows, "csv", "behaviors")
    assert shown(load_prompts(benign=other)) == {"a long goal": "benign C"}
    with pytest.raises(PromptError, match="--harmful or with --benign"):
        load_prompts(other)


def test_or_bench_is_borderline_unless_it_is_the_toxic_file(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "category": "violence"}]
    assert shown(load_prompts(benign=save(tmp_path, rows, "csv"))) == {"one": "borderline violence"}
    assert shown(load_prompts(save(tmp_path, rows, "csv", "or-bench-hard-1k"))) == {"one": "borderline violence"}
    assert shown(load_prompts(save(tmp_path, rows, "csv", "or-bench-toxic"))) == {"one": "harmful violence"}


def test_a_users_file_with_one_category_of_or_bench_is_not_or_bench(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "category": "violence"}, {"prompt": "two", "category": "cooking"}]
    assert shown(load_prompts(benign=save(tmp_path, rows, "csv"))) == {
        "one": "benign violence",
        "two": "benign cooking",
    }


def test_coconot_is_harmful_in_one_category_and_benign_in_its_contrast(tmp_path: Path) -> None:
    def row(category: str, prompt: str) -> dict[str, str]:
        return {"id": "1", "category": category, "subcategory": "S", "prompt": prompt, "response": "x"}

    rows = [row("Requests with safety concerns", "bad"), row("Humanizing requests", "strange")]
    assert shown(load_prompts(harmful=save(tmp_path, rows, "csv"))) == {"bad": "harmful S"}
    assert set(shown(load_prompts(benign=save(tmp_path, rows, "csv")))) == {"bad", "strange"}


def test_two_copies_of_xstest_give_the_same_prompts(tmp_path: Path) -> None:
    labelled = [row | {"label": "safe" if row["id"] == 1 else "unsafe", "focus": "x"} for row in XSTEST]
    loaded, other = (load_prompts(save(tmp_path, rows, "csv", str(len(rows[0])))) for rows in (XSTEST, labelled))
    assert loaded.prompts_id == other.prompts_id
    with_answers = [row | {"completion": "No.", "label": "refusal"} for row in XSTEST]
    assert load_prompts(save(tmp_path, with_answers, "csv", "answers")).prompts_id == loaded.prompts_id


def test_variants_of_one_seed_are_never_in_two_splits(tmp_path: Path) -> None:
    rows = [
        {"vanilla": f"seed {n % 5}", "adversarial": f"word{n} thing{n} place{n}", "completion": "", "data_type": kind}
        for n, kind in enumerate(["adversarial_harmful"] * 30)
    ]
    splits: dict[str, set[str | None]] = {}
    for prompt in load_prompts(save(tmp_path, rows, "tsv")).prompts:
        splits.setdefault(prompt.group, set()).add(prompt.split)
    assert len(splits) == 5
    assert all(len(result) == 1 for result in splits.values())


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", "response": "r", "category": {"theft": True, "hate": False}, "is_safe": True}, "is_safe"),
        ({"prompt": "p", "response": "r", "label": "safe"}, "label"),
        ({"prompt": "p", "completion": "r", "is_harmful": 0}, "is_harmful"),
        ({"instruction": "p", "output": "r", "unsafe": 0}, "unsafe"),
        (
            {"prompt": "p", "response_0": "r", "response_1": "s", "is_response_0_safe": True, "better_response_id": 0},
            "",
        ),
    ],
)
def test_a_label_of_the_answer_is_never_the_prompts(tmp_path: Path, row: dict[str, Any], column: str) -> None:
    path = save(tmp_path, [row], "jsonl")
    with pytest.raises(PromptError, match=rf"no label column of its prompts.*{column}.*--harmful or with --benign"):
        load_prompts(path)
    prompts = load_prompts(harmful=path)
    assert [prompt.kind for prompt in prompts.prompts] == ["harmful"]
    if column == "label":
        assert any("'label' stands beside 'response'" in note for note in prompts.notes)


def test_categories_that_are_flags_or_lists_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "category": {"hate": False, "theft": True}, "is_safe": True}
    assert shown(load_prompts(harmful=save(tmp_path, [row], "jsonl"))) == {"p": "harmful theft"}
    listed = {"prompt": "p", "category": ["theft", "fraud"]}
    assert shown(load_prompts(harmful=save(tmp_path, [listed], "parquet"))) == {"p": "harmful theft"}


def test_a_set_given_as_the_other_kind_is_an_error(tmp_path: Path) -> None:
    rows, _ = SETS["strongreject"]
    with pytest.raises(PromptError, match="given as benign, but it says itself that no row is"):
        load_prompts(benign=save(tmp_path, rows, "csv"))


def test_a_named_column_is_the_users_word(tmp_path: Path) -> None:
    path = save(tmp_path, WILD, "tsv")
    assert set(shown(load_prompts(f"{path}:vanilla"))) == {"plain bad", "plain seed"}


def test_every_known_set_says_where_it_is_and_under_which_licence() -> None:
    for known in KNOWN_SETS:
        assert known.home
        assert known.licence
        assert known.files or known.is_gated, known.name
        for file in known.files:
            assert file.address.startswith("https://") or file.address.count("/") in (1, 2, 3)
            assert (
                file.kind
                or known.kind
                or known.labels
                or known.route
                or known.name in ("beavertails", "pku-saferlhf", "advbench")
            )


def test_a_set_by_name_is_read_from_the_cache_with_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIPSEARCH_CACHE", str(tmp_path))
    folder = tmp_path / "prompts" / "strongreject"
    folder.mkdir(parents=True)
    content = b"category,source,forbidden_prompt\ntheft,s,bad\n"
    (folder / "strongreject_dataset.csv").write_bytes(content)
    prompts = load_prompts("strongreject")
    assert shown(prompts) == {"bad": "harmful theft"}
    assert prompts.prompts[0].source == "strongreject"
    assert any(f"not pinned: sha256 {hashlib.sha256(content).hexdigest()}" in note for note in prompts.notes)
    with pytest.raises(PromptError, match="given as benign"):
        load_prompts(benign="strongreject")


def test_a_set_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIPSEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PromptError, match=r"cannot fetch https://.*HF_HUB_OFFLINE is set"):
        load_prompts("harmbench")
    with pytest.raises(PromptError, match=r"'wildguardmix' is gated: accept its terms there \(https://"):
        load_prompts("wildguardmix")
    with pytest.raises(PromptError, match=r"unknown prompt set 'harmbemch'\. Did you mean harmbench"):
        load_prompts("harmbemch")


def test_more_prompts_than_a_command_works_on_are_taken_by_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_sets, "MAX_KEPT", 40)
    rows = [{"prompt": f"topic{n} thing{n}"} for n in range(1000)]
    loaded = load_prompts(harmful=save(tmp_path, rows, "csv"), benign=save(tmp_path, [{"prompt": "good"}], "csv", "b"))
    other = load_prompts(harmful=save(tmp_path, rows[::-1], "csv"), benign=str(tmp_path / "b.csv"))
    assert loaded.prompts_id == other.prompts_id
    assert len(loaded.prompts) == 41
    assert "40 of 1,000 harmful prompts taken at random, the most that a command works on" in loaded.notes


def test_names_of_known_sets_are_no_built_in_sets() -> None:
    assert not set(BY_NAME) & set(prompt_sets.list_sets())
