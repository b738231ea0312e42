"""Options of the command line, made from the config classes: a setting's docstring is its help text.

A config class is imported for the command that runs alone, so that `flipsearch --help` does not wait for pydantic.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from flipsearch.config import ModelConfig

Command = Callable[..., None]
Setting = str | int | float | bool | Path | list[str] | list[int] | None
"""A setting as it was typed; None if it was not."""


def option(help: str, *names: str, metavar: str | None = None) -> Any:
    """Return a typer option that shows no default: None means that it was not given."""
    return typer.Option(*names, help=help, show_default=False, metavar=metavar)


Config = Annotated[Path | None, option("TOML file of settings; options win over it.")]
Json = Annotated[bool, option("Print one JSON object on stdout.", "--json")]
Reports = Annotated[Path | None, option("Folder of the studies (reports).")]
StudyPlace = Annotated[str, typer.Argument(help="A study's name or folder, or a ledger file.", metavar="STUDY")]


def with_options(command: Command, config_class: str, *, is_run: bool) -> Command:
    """Give a command an option for each setting of a class in flipsearch.config, in place of its other keywords.

    One that does not run is only listed with its help, and needs none.
    """
    own = [
        parameter for parameter in signature(command).parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD
    ]
    settings = []
    if is_run:
        kind = getattr(import_module("flipsearch.config"), config_class)
        settings = [setting_option(kind, name) for name in kind.model_fields]
    ahead = [parameter for parameter in own if parameter.default is Parameter.empty]
    behind = [parameter for parameter in own if parameter.default is not Parameter.empty]
    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*ahead, *settings, *behind)]

    def run(**keywords: Setting) -> None:
        command(**keywords)

    run.__doc__, widened = command.__doc__, cast(Any, run)
    widened.__signature__ = Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def setting_option(kind: "type[ModelConfig]", name: str) -> Parameter:
    """Return the option of one setting; what is typed is validated by the config class."""
    from flipsearch.core.settings import flag_of, value_type

    field, flag = kind.model_fields[name], flag_of(kind, name)
    typed, is_sequence = value_type(kind, name)
    names, metavar, help = flag.names, flag.metavar, field.description or ""
    if typed is bool and field.default:
        names, help = (f" /--no-{name.replace('_', '-')}",), f"Do not {help[0].lower()}{help[1:]}"
    elif typed is not bool and not field.is_required() and field.default not in (None, (), ""):
        values = field.default if is_sequence else (f"{field.default:g}" if typed is float else field.default,)
        help = f"{help.removesuffix('.')} ({', '.join(map(str, values))})."
    if flag.is_argument:
        argument = typer.Argument(help=field.description, metavar=metavar, show_default=False)
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[str, argument])
    annotation: Any = list[typed] if is_sequence else typed  # type: ignore[valid-type]
    shown = Annotated[annotation | None, option(help, *names, metavar=metavar)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=shown)


def given(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the settings that were typed."""
    return {name: value for name, value in settings.items() if value is not None}
