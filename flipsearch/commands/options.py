"""The flags that several commands share. None means: not given, so that the settings' own default holds."""

from collections.abc import Callable
from inspect import Parameter, Signature, get_annotations, signature
from pathlib import Path
from typing import Annotated, Any

import typer


def option(help: str, *names: str, metavar: str | None = None) -> Any:
    """Return a typer option; None means: not given, so that the settings' own default holds."""
    return typer.Option(*names, help=help, show_default=False, metavar=metavar)


Model = Annotated[str | None, option("pocket (the default), a local folder, or a hub id org/name[@revision].")]
Backend = Annotated[str | None, option("transformers (the default), vllm, or scripted.")]
Thinking = Annotated[str | None, option("The chat template's thinking switch: auto, on or off.")]
Device = Annotated[str | None, option("auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, option("auto, float32, bfloat16 or float16.")]
BatchSize = Annotated[int | None, option("Rows a batch; halved by itself where memory is short.")]
MaxTokens = Annotated[int | None, option("Most completion tokens (pocket 160, others 1,024).")]
Temperature = Annotated[float | None, option("0 (the default) is greedy decoding.")]
Samples = Annotated[int | None, option("Samples of each prompt, with --temperature (1).", metavar="M")]
UnsafeAt = Annotated[int | None, option("Unsafe draws from which on a prompt is unsafe (1).", metavar="m")]
TopP = Annotated[float | None, option("Nucleus mass, with --temperature.")]
TopK = Annotated[int | None, option("Most likely tokens kept, with --temperature; 0 keeps all.")]
Prompts = Annotated[str | None, option("A built-in set (pocket, starter) or a file with labels.")]
Harmful = Annotated[list[str] | None, option("File of harmful prompts; repeatable.", metavar="PATH[:COLUMN]")]
Benign = Annotated[list[str] | None, option("File of benign prompts; repeatable.", metavar="PATH[:COLUMN]")]
Judge = Annotated[
    str | None,
    option("A judge, J(option=value), or a panel J+J:any (:all, :majority, :mean). Default: compact; pocket refusal."),
]
SecondJudges = Annotated[
    list[str] | None, option("A judge with a column of its own; repeatable.", "--second-judge", metavar="JUDGE")
]
Contexts = Annotated[
    list[str] | None, option("More context templates: a .j2 file or a folder; repeatable.", metavar="PATH")
]
Templates = Annotated[list[str] | None, option("Search this template only; repeatable.", "--template", metavar="NAME")]
Placements = Annotated[
    list[str] | None, option("Search this placement only; repeatable.", "--placement", metavar="NAME")
]
Seed = Annotated[int | None, option("Seed of the search and of sampling (0).")]
Reports = Annotated[Path | None, option("Folder of the studies (reports).")]
StudyName = Annotated[str | None, option("Name of the study's folder; derived from the settings if not given.")]
StudyPlace = Annotated[str, typer.Argument(help="A study's name or folder, or a ledger file.", metavar="STUDY")]
Config = Annotated[Path | None, option("TOML file of settings; flags win over it.")]
Json = Annotated[bool, option("Print one JSON object on stdout.", "--json")]


def with_flags_of(other: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, beside its own flags, those of another one, as keywords in `flags`."""

    def widen(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in signature(command).parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        widened: Any = command
        widened.__signature__ = Signature([*own, *signature(other).parameters.values()])
        widened.__annotations__ = get_annotations(other) | {one.name: one.annotation for one in own}
        return command

    return widen
