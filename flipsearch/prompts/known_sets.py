"""Public prompt sets as published: which columns they have, and which of them says what.

    table's columns --recognise--> KnownSet: prompt, kind, category, context, rows that are left out

A file is recognised by its columns, whatever its name. What a set leaves open (BeaverTails labels answers, not prompts)
stays open, and the user says what the file holds. A new set is one row of KNOWN_SETS.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flipsearch.core.errors import PromptError
from flipsearch.core.records import Kind

LEFT_OUT: Literal["left out"] = "left out"
Routed = Kind | Literal["left out"]
HARMFUL_OR_NOT: Mapping[str, Routed] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "vanilla_harmful": "harmful",
    "adversarial_harmful": "harmful",
    "malicious": "harmful",
    "toxic": "harmful",
    "jailbreak": "harmful",
    "benign": "benign",
    "safe": "benign",
    "unharmful": "benign",
    "harmless": "benign",
    "vanilla_benign": "benign",
    "adversarial_benign": "benign",
    "not_harmful": "benign",
    "non_toxic": "benign",
}
"""The labels that public sets and users' files have for prompts."""
_XSTEST_SAFE = [
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "real_group_nons_discr",
    "nons_group_real_discr",
    "historical_events",
    "privacy_public",
    "privacy_fictional",
]
_XSTEST_UNSAFE = [
    "contrast_homonyms",
    "contrast_figurative_language",
    "contrast_safe_targets",
    "contrast_safe_contexts",
    "contrast_definitions",
    "contrast_discr",
    "contrast_historical_events",
    "contrast_privacy",
]
_BENIGN: Routed = "benign"
_HARMFUL: Routed = "harmful"
_XSTEST_TYPES = dict.fromkeys(_XSTEST_SAFE, _BENIGN) | dict.fromkeys(_XSTEST_UNSAFE, _HARMFUL)
_OR_BENCH = [
    "deception",
    "harassment",
    "harmful",
    "hate",
    "illegal",
    "privacy",
    "self-harm",
    "sexual",
    "unethical",
    "violence",
]


@dataclass(frozen=True, slots=True)
class SetFile:
    """A public file of a set."""

    address: str
    """An https address, or ORG/NAME[/CONFIG[/SPLIT]] on the Hugging Face hub."""
    kind: Kind | None = None
    """None leaves it to the labels."""
    sha256: str = ""
    """"" if none is known: the file is then taken as it comes, and its hash is noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSet:
    """One public prompt set. Column names are in lower case."""

    name: str
    columns: frozenset[str]
    """A file with all of these is of this set, if no set with more of them fits; none: known by name."""
    licence: str
    home: str
    """Where its terms and its description are."""
    prompt: tuple[str, ...]
    """The first of these columns that a row fills is its prompt."""
    kind: Kind | None = None
    """What all rows are; None if labels, the file's name or the user say so."""
    labels: Mapping[str, Mapping[str, Routed]] | None = None
    """Columns that label the prompt, best first, and what their values mean."""
    route: Callable[[Mapping[str, str]], tuple[str, Routed]] | None = None
    """Label and kind of a row, from its cells by name, where several columns say it together."""
    kind_by_name: tuple[tuple[str, Kind], ...] = ()
    """Parts of file names that tell the kind of files with equal columns, unless the user says it."""
    category: tuple[str, ...] = ()
    borderline: bool = False
    """Its benign prompts are there because they look harmful."""
    context: str = ""
    """Column of a text that the prompt speaks of, which is asked with it."""
    left_out: tuple[str, Mapping[str, str]] | None = None
    """A column, and the reasons for which rows with some of its values are left out."""
    only_harmful: tuple[str, str] | None = None
    """A column and the value of the rows that are harmful, where the file is given as harmful."""
    group: str = ""
    """Column of what several rows vary: they never are in two splits."""
    first_values: tuple[str, frozenset[str]] | None = None
    """A column and its values, which tell this set from other files with the same columns."""
    files: tuple[SetFile, ...] = ()
    is_gated: bool = False

    def kind_of(self, file_name: str) -> Kind | None:
        """Return what all rows of a file are, or None if its name does not say."""
        lower = file_name.lower()
        return self.kind or next((kind for part, kind in self.kind_by_name if part in lower), None)

    @property
    def holds(self) -> str:
        """What is in the set, in a few words."""
        kinds = {self.kind} | {file.kind for file in self.files} | {kind for _, kind in self.kind_by_name}
        kinds |= {"harmful", "benign"} if self.route else set()
        kinds |= {kind for meanings in (self.labels or {}).values() for kind in meanings.values() if kind != LEFT_OUT}
        benign = "borderline" if self.borderline else "benign"
        texts = [text for kind, text in (("harmful", "harmful"), ("benign", benign)) if kind in kinds]
        return " and ".join(texts) or "prompts without labels"


_MODERATION = ("s", "h", "v", "hr", "sh", "s3", "h2", "v2")
_AEGIS_ANSWER = re.compile(r"^(?:Assistant|Agent|AI|Bot|Chatbot|Model|LLM):", re.MULTILINE)


def _by_any_flag(cells: Mapping[str, str]) -> tuple[str, Routed]:
    flags = [name for name in _MODERATION if cells.get(name, "").removesuffix(".0") == "1"]
    return ("flagged", "harmful") if flags else ("not flagged", "benign")


def _by_annotators(cells: Mapping[str, str]) -> tuple[str, Routed]:
    if _AEGIS_ANSWER.search(cells["text"]):
        return "with an answer, which its labels may be of", LEFT_OUT
    labels = {value.lower() for name, value in cells.items() if name.startswith("labels_") and value}
    if labels <= {"needs caution"} or ("safe" in labels and len(labels) > 1):
        return "annotators in doubt", LEFT_OUT
    return ("safe", "benign") if "safe" in labels else ("unsafe", "harmful")


def _set(name: str, columns: str, licence: str, home: str, prompt: str, **more: object) -> KnownSet:
    return KnownSet(
        name=name,
        columns=frozenset(columns.split(",") if columns else ()),
        licence=licence,
        home=home,
        prompt=tuple(prompt.split(",")),
        **more,  # type: ignore[arg-type]
    )


_RAW = "https://raw.githubusercontent.com"
_HUB = "https://huggingface.co/datasets"
KNOWN_SETS: tuple[KnownSet, ...] = (
    _set(
        "harmbench", "behavior,functionalcategory,contextstring", "MIT", "github.com/centerforaisafety/HarmBench",
        "behavior", kind="harmful", category=("semanticcategory",), context="contextstring",
        left_out=("functionalcategory", {"copyright": "copyright behaviours, which need a classifier of their own"}),
        files=(SetFile(
            f"{_RAW}/centerforaisafety/HarmBench/main/data/behavior_datasets/harmbench_behaviors_text_all.csv"
        ),),
    ),
    _set(
        "strongreject", "category,source,forbidden_prompt", "MIT", "github.com/alexandrasouly/strongreject",
        "forbidden_prompt", kind="harmful", category=("category",),
        files=(SetFile(f"{_RAW}/alexandrasouly/strongreject/main/strongreject_dataset/strongreject_dataset.csv"),),
    ),
    _set(
        "advbench", "goal,target", "MIT", "github.com/llm-attacks/llm-attacks", "goal",
        kind_by_name=(("", "harmful"),),
        files=(SetFile(f"{_RAW}/llm-attacks/llm-attacks/main/data/advbench/harmful_behaviors.csv"),),
    ),
    _set(
        "jbb", "goal,target,behavior,category", "MIT", "huggingface.co/datasets/JailbreakBench/JBB-Behaviors", "goal",
        kind_by_name=(("harmful", "harmful"), ("benign", "benign")), category=("category",),
        files=(
            SetFile(f"{_HUB}/JailbreakBench/JBB-Behaviors/resolve/main/data/harmful-behaviors.csv", "harmful"),
            SetFile(f"{_HUB}/JailbreakBench/JBB-Behaviors/resolve/main/data/benign-behaviors.csv", "benign"),
        ),
    ),
    _set(
        "xstest", "prompt,type", "CC BY 4.0", "github.com/paul-rottger/xstest", "prompt",
        labels={"label": HARMFUL_OR_NOT, "type": _XSTEST_TYPES}, category=("type",), borderline=True,
        first_values=("type", frozenset(_XSTEST_TYPES)),
        files=(SetFile(f"{_RAW}/paul-rottger/xstest/main/xstest_prompts.csv"),),
    ),
    _set(
        "wildjailbreak", "vanilla,adversarial,data_type", "ODC-BY", "huggingface.co/datasets/allenai/wildjailbreak",
        "adversarial,vanilla", labels={"data_type": HARMFUL_OR_NOT}, group="vanilla", is_gated=True,
    ),
    _set(
        "wildjailbreak-eval", "adversarial,label,data_type", "ODC-BY",
        "huggingface.co/datasets/allenai/wildjailbreak", "adversarial", labels={"data_type": HARMFUL_OR_NOT},
        is_gated=True,
    ),
    _set(
        "wildguardmix", "prompt,adversarial,prompt_harm_label", "ODC-BY",
        "huggingface.co/datasets/allenai/wildguardmix", "prompt",
        labels={"prompt_harm_label": {**HARMFUL_OR_NOT, "": LEFT_OUT, "none": LEFT_OUT}},
        category=("subcategory",), is_gated=True,
    ),
    _set(
        "xstest-response", "", "ODC-BY", "huggingface.co/datasets/allenai/xstest-response", "prompt", is_gated=True,
    ),
    _set(
        "or-bench", "prompt,category", "CC BY 4.0", "huggingface.co/datasets/bench-llm/or-bench", "prompt",
        kind_by_name=(("toxic", "harmful"), ("or-bench", "benign"), ("or_bench", "benign")), category=("category",),
        borderline=True, first_values=("category", frozenset(_OR_BENCH)),
        files=(
            SetFile("bench-llm/or-bench/or-bench-hard-1k/train", "benign"),
            SetFile("bench-llm/or-bench/or-bench-toxic/train", "harmful"),
        ),
    ),
    _set(
        "phtest", "request,harmfulness", "MIT", "huggingface.co/datasets/furonghuang-lab/PHTest", "request",
        labels={"harmfulness": {"harmless": "benign", "controversial": LEFT_OUT}}, borderline=True,
        files=(SetFile("furonghuang-lab/PHTest"),),
    ),
    _set(
        "safechain", "instruction,label,response", "see its card", "huggingface.co/datasets/UWNSL/SafeChain",
        "instruction", labels={"label": HARMFUL_OR_NOT}, is_gated=True,
        first_values=("label", frozenset(name for name in HARMFUL_OR_NOT if name.startswith(("vanilla", "advers")))),
    ),
    _set(
        "beavertails", "prompt,response,category,is_safe", "CC BY-NC 4.0",
        "huggingface.co/datasets/PKU-Alignment/BeaverTails", "prompt", category=("category",),
        files=(SetFile("PKU-Alignment/BeaverTails/default/30k_test"),),
    ),
    _set(
        "pku-saferlhf", "prompt,response_0,response_1,better_response_id", "CC BY-NC 4.0",
        "huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF", "prompt",
        files=(SetFile("PKU-Alignment/PKU-SafeRLHF/default/test"),),
    ),
    _set(
        "sorry-bench", "question_id,category,turns", "its own",
        "huggingface.co/datasets/sorry-bench/sorry-bench-202406", "turns", kind="harmful", category=("category",),
        group="question_id", is_gated=True,
        first_values=("category", frozenset(map(str, range(1, 46)))),  # MT-Bench has the same columns
    ),
    _set(
        "coconot", "id,category,subcategory,prompt", "ODC-BY", "huggingface.co/datasets/allenai/coconot", "prompt",
        kind_by_name=(("contrast", "benign"), ("original", "harmful")), category=("subcategory",), borderline=True,
        only_harmful=("category", "Requests with safety concerns"),
        files=(
            SetFile("allenai/coconot/original/test", "harmful"), SetFile("allenai/coconot/contrast/test", "benign"),
        ),
    ),
    _set(
        "falsereject", "prompt,category,category_text", "see its card",
        "huggingface.co/datasets/AmazonScience/FalseReject", "prompt", kind="benign", category=("category_text",),
        borderline=True, files=(SetFile("AmazonScience/FalseReject/default/test"),),
    ),
    _set(
        "do-not-answer", "risk_area,types_of_harm,question", "Apache-2.0 or CC BY-NC-SA 4.0 (sources conflict)",
        "github.com/Libr-AI/do-not-answer", "question", kind="harmful", category=("types_of_harm",),
        files=(SetFile("LibrAI/do-not-answer"),),
    ),
    _set(
        "simplesafetytests", "prompt,harm_area,category", "CC BY 2.0",
        "huggingface.co/datasets/Bertievidgen/SimpleSafetyTests", "prompt", kind="harmful", category=("harm_area",),
        files=(SetFile("Bertievidgen/SimpleSafetyTests"),),
    ),
    _set(
        "air-bench", "cate-idx,l2-name,prompt", "CC BY 4.0 or Apache-2.0 (sources conflict)",
        "huggingface.co/datasets/stanford-crfm/air-bench-2024", "prompt", kind="harmful", category=("l2-name",),
        files=(SetFile("stanford-crfm/air-bench-2024/default/test"),),
    ),
    _set(
        "s-eval", "prompt,risk_type", "CC BY-NC-SA 4.0", "huggingface.co/datasets/IS2Lab/S-Eval", "prompt",
        kind="harmful", category=("risk_type",), files=(SetFile("IS2Lab/S-Eval/base_risk_set_en_small"),),
    ),
    _set(
        "malicious-instruct", "", "none stated", "github.com/Princeton-SysML/Jailbreak_LLM", "text",
        files=(SetFile(
            f"{_RAW}/Princeton-SysML/Jailbreak_LLM/1e490531c0ef4bc13430178bf1fbc8f813e34b1a/data/MaliciousInstruct.txt",
            "harmful", "a64d69dd1004aac4a23aaff3748fb8f17161893f74db36f45b8bc849eb1bcce5",
        ),),
    ),
    _set(
        "tdc23", "", "MIT", "github.com/centerforaisafety/tdc2023-starter-kit", "text",
        files=(SetFile(
            f"{_RAW}/centerforaisafety/tdc2023-starter-kit/main/red_teaming/data/dev/behaviors.json", "harmful"
        ),),
    ),
    _set(
        "ailuminate", "prompt_text,hazard,persona", "see its LICENSE.md", "github.com/mlcommons/ailuminate",
        "prompt_text", kind="harmful", category=("hazard",),
        files=(SetFile(
            f"{_RAW}/mlcommons/ailuminate/769cc2be9d20c8d4fb26ce53b68865ed41dfb8e2/"
            "airr_official_1.0_demo_en_us_prompt_set_release.csv",
            sha256="63e2b654325c5405096fabf28ef5f057b0ad674904b1839fd1f52b523e324d02",
        ),),
    ),
    _set(
        "toxic-chat", "user_input,model_output,toxicity", "CC BY-NC 4.0", "huggingface.co/datasets/lmsys/toxic-chat",
        "user_input", labels={"toxicity": {"1": "harmful", "0": "benign"}},
        files=(SetFile("lmsys/toxic-chat/toxicchat0124/test"),),
    ),
    _set(
        "aegis2", "prompt,prompt_label,violated_categories", "CC BY 4.0",
        "huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-2.0", "prompt",
        labels={"prompt_label": HARMFUL_OR_NOT}, category=("violated_categories",),
        left_out=("prompt", {"redacted": "redacted prompts"}),
        files=(SetFile("nvidia/Aegis-AI-Content-Safety-Dataset-2.0/default/test"),),
    ),
    _set(
        "aegis1", "text,text_type,labels_0,labels_1", "CC BY 4.0",
        "huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0", "text", route=_by_annotators,
        category=("labels_0",), files=(SetFile("nvidia/Aegis-AI-Content-Safety-Dataset-1.0/default/test"),),
    ),
    _set(
        "openai-moderation", f"prompt,{','.join(_MODERATION[:5])}", "MIT",
        "github.com/openai/moderation-api-release", "prompt", route=_by_any_flag,
        files=(SetFile(f"{_RAW}/openai/moderation-api-release/main/data/samples-1680.jsonl.gz"),),
    ),
    _set(
        "salad-attack", "augq,baseq,method", "Apache-2.0", "huggingface.co/datasets/OpenSafetyLab/Salad-Data", "augq",
        kind="harmful", category=("1-category",), group="baseq",
        files=(SetFile("OpenSafetyLab/Salad-Data/attack_enhanced_set/train"),),
    ),
    _set(
        "salad", "qid,question,1-category", "Apache-2.0", "huggingface.co/datasets/OpenSafetyLab/Salad-Data",
        "question", kind="harmful", category=("1-category",),
        files=(SetFile("OpenSafetyLab/Salad-Data/base_set/train"),),
    ),
)  # fmt: skip
BY_NAME: Mapping[str, KnownSet] = {known.name: known for known in KNOWN_SETS}


def describe(known: KnownSet) -> dict[str, str]:
    """Return what `flipsearch list prompts` says of a set: what it holds, its licence, where it is and how it comes."""
    is_file = any(file.address.startswith("https://") for file in known.files)
    hashes = [file.sha256 for file in known.files if file.sha256]
    if not known.files:
        access = "gated"
    else:
        access = ("pinned file" if hashes else "file, not pinned") if is_file else "hub dataset"
    return {
        "name": known.name,
        "description": f"{known.holds}; {known.licence}; {access}\n{known.home}",
        "holds": known.holds,
        "licence": known.licence,
        "access": access,
        "home": f"https://{known.home}",
        "files": " ".join(file.address for file in known.files),
        "sha256": " ".join(hashes),
        "columns": ", ".join(sorted(known.columns)),
    }


def recognise(columns: Sequence[str], first: Sequence[Mapping[str, str]]) -> KnownSet | None:
    """Return the set that a file with these columns is of: the one with most of them; None if it is of none.

    `columns` are in lower case, `first` are the cells of the first rows.
    """
    has = set(columns)
    fitting = [
        known
        for known in KNOWN_SETS
        if known.columns
        and known.columns <= has
        and (known.first_values is None or _has_values(first, *known.first_values))
    ]
    return max(fitting, key=lambda known: len(known.columns), default=None)


def _has_values(rows: Sequence[Mapping[str, str]], column: str, values: frozenset[str]) -> bool:
    return all(row.get(column, "").lower() in values for row in rows)


def files_of(known: KnownSet) -> tuple[SetFile, ...]:
    """Return the public files of a set; PromptError says how to get a set that has none."""
    if known.files:
        return known.files
    gate = "is gated: accept its terms there" if known.is_gated else "has no plain public file: get it there"
    raise PromptError(f"'{known.name}' {gate} (https://{known.home}), and give the file with --prompts.")
