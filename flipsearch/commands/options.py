"""Options of the command line, made from the config classes: a setting's docstring is its help text.

A config class is imported for the command that runs alone, so that `flipsearch --help` does not wait for pydantic.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand

from flipsearch.core.errors import ConfigError
from flipsearch.core.files import discard

if TYPE_CHECKING:
    from flipsearch.commands.console import Outcome
    from flipsearch.config import ModelConfig

Command = Callable[..., "Outcome | None"]
Setting = str | int | float | bool | Path | list[str] | list[int] | None
"""A setting as it was typed; None if it was not."""
FIRST = "Main options"
GROUPS = {
    FIRST: "model context preset prompts harmful benign judge against quantize_base student seeds methods data_sizes "
    "num_contexts budget_tokens time_s study name placement format to",
    "Model and decoding": "backend thinking think_tokens device dtype max_model_len batch_size max_tokens temperature "
    "top_p top_k seed omit request_timeout_s",
    "Prompts and judging": "max_prompts max_problems split predict_split reasoning samples repetition_penalty "
    "unsafe_at count_flips second_judges confirm_judge",
    "Attacks": "attacks attack_score attempts attacker unsafe_answers",
    "Where contexts come from": "contexts start templates placements breed rewriter screen max_context_tokens "
    "benign_context cohort_size",
    "What a context may cost": "max_over_refusal over_refusal max_contraction",
    "Stopping early and confirming": "first_rung alpha tolerance num_finalists depths",
    "What is learnt": "control gate method teacher rollouts forward_weight reverse_weight jensen_shannon_weight "
    "loss_mixture loss_temperature support tail clip horizon max_length lora lora_alpha lora_targets quantize "
    "data_share",
    "Optimizer": "epochs max_steps learning_rate train_batch_size micro_batch_size optimizer scheduler warmup_share "
    "weight_decay max_grad_norm gradient_checkpointing eval_steps eval_prompts",
    "Files": "best reports checkpoints resume save_steps report_to push_to_hub sample_prompts drop_weights",
}
"""Heading -> the settings below it, in this order; any other setting is in the first group."""
METAVARS = {
    **dict.fromkeys(("model", "teacher", "against"), "MODEL"),
    **dict.fromkeys(("reports", "checkpoints"), "FOLDER"),
    **{name: name.upper() for name in ("context", "judge", "study", "what")},
    "config": "FILE",
    "best": "FILE",
    "prompts": "NAME|FILE",
}
"""What stands for the value of an option in the help; for others it follows from the type."""
NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}
METAVARS_BY_TYPE: dict[Any, str] = {int: "N", float: "X", Path: "FILE"}


def option(help: str, *names: str, metavar: str | None = None, group: str | None = None) -> Any:
    """Return a typer option that shows no default: None means that it was not given."""
    return typer.Option(*names, help=help, show_default=False, metavar=metavar, rich_help_panel=group)


Config = Annotated[Path | None, option("TOML file of settings; options win over it.", group="Files")]
Json = Annotated[bool, option("Print one JSON object on stdout, and nothing else there.", "--json")]
Reports = Annotated[Path | None, option("Folder of the studies (reports).")]
Contexts = Annotated[list[str], typer.Argument(help="Texts, files, cards (best.json) or template names.")]
StudyPlace = Annotated[str, typer.Argument(help="A study's name or folder, or a ledger file.", metavar="STUDY")]


class GroupedCommand(TyperCommand):
    """A command whose help lists its options in groups, as plain text that any terminal and pipe can show."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; ConfigError where an option stands in the place of another one's value."""
        left = super().parse_args(ctx, args)
        options = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "option"]
        flags = {flag for parameter in options for flag in parameter.opts}
        for parameter in options:
            value = ctx.params.get(parameter.name)
            for text in map(str, value if isinstance(value, list | tuple) else [value]):
                if text in flags:
                    raise ConfigError(f"{parameter.opts[0]} is '{text}', which is an option: its own value is missing.")
        return left

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line, without the braces around what must be given."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then a list of options for each group, in the order of GROUPS."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{heading: [] for heading in GROUPS}}
        for parameter in self.get_params(ctx):
            if record := help_record(parameter, ctx):
                is_argument = parameter.param_type_name == "argument"
                heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or FIRST
                groups[heading].append(record)
        is_single = sum(map(bool, groups.values())) - bool(groups["Arguments"]) == 1
        for heading, records in groups.items():
            if records:
                with formatter.section("Options" if heading == FIRST and is_single else heading):
                    formatter.write_dl(records, col_max=26)


def help_record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """Return an option or an argument as it is typed, and its help; None if it is hidden."""
    record = parameter.get_help_record(ctx)
    if record is None:
        return None
    typed, text = record
    if parameter.param_type_name == "argument":  # behind it stands a type of Python
        return f"{typed.partition(' ')[0]}{'…' * (parameter.nargs != 1)}", text
    return typed.removeprefix(" / "), text  # " / ": an option that only turns off


def printing(command: Command) -> Callable[..., None]:
    """Return a command that runs while stdout is stderr, then prints its outcome, and ends with its exit code.

    What judges, plug-ins and libraries print meanwhile spoils no result.
    """

    def run(**keywords: Setting) -> None:
        from flipsearch.commands.console import only_results_on_stdout

        with only_results_on_stdout():
            outcome = command(**keywords)
        if outcome is not None:
            try:
                outcome.print(as_json=bool(keywords.get("json")))
                sys.stdout.flush()
            except BrokenPipeError:  # its reader, such as head, has seen enough: no reason for another exit code
                discard(sys.stdout)
            raise SystemExit(outcome.exit_code)

    return _with_parameters(run, command, signature(command).parameters.values())


def _with_parameters(run: Callable[..., Any], command: Command, parameters: Iterable[Parameter]) -> Callable[..., Any]:
    """Give a function the docstring of a command, and the parameters that typer makes options from."""
    parameters = list(parameters)
    for parameter in parameters:
        kind, shown = get_args(parameter.annotation)
        while inner := [part for part in get_args(kind) if part is not type(None)]:
            kind = inner[0]
        if kind is not bool and shown.metavar is None:
            shown.metavar = METAVARS.get(parameter.name) or METAVARS_BY_TYPE.get(kind, "NAME")
        if kind in NUMBERS:
            named = shown.default if isinstance(shown.default, str) else f"--{parameter.name.replace('_', '-')}"
            shown.parser = _number_parser(kind, named)
    run.__doc__ = command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    cast(Any, run).__signature__ = Signature(parameters)
    return run


def _number_parser(kind: type[int] | type[float], flag: str) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{flag} is {text!r:.80}: expected {NUMBERS[kind]}.") from None

    return number


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
        order = [name for names in GROUPS.values() for name in names.split()]
        in_order = sorted(kind.model_fields, key=lambda name: order.index(name) if name in order else len(order))
        settings = [setting_option(kind, name) for name in in_order]
    ahead = [parameter for parameter in own if parameter.default is Parameter.empty]
    behind = [parameter for parameter in own if parameter.default is not Parameter.empty]
    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*ahead, *settings, *behind)]
    return _with_parameters(lambda **keywords: command(**keywords), command, parameters)


def setting_option(kind: "type[ModelConfig]", name: str) -> Parameter:
    """Return the option of one setting; what is typed is validated by the config class."""
    from flipsearch.core.settings import flag_of, value_type

    field, flag = kind.model_fields[name], flag_of(kind, name)
    typed, is_sequence = value_type(kind, name)
    names, metavar, help = flag.names, flag.metavar, field.description or ""
    group = next((heading for heading, names in GROUPS.items() if name in names.split()), FIRST)
    if typed is bool and field.default:
        names, help = (f" /--no-{name.replace('_', '-')}",), f"Do not {help[0].lower()}{help[1:]}"
    elif flag.is_text and isinstance(field.default, float):
        help = f"{help.removesuffix('.')} ({field.default:g} s)."
    elif typed is not bool and not field.is_required() and field.default not in (None, (), ""):
        values = field.default if is_sequence else (f"{field.default:g}" if typed is float else field.default,)
        help = f"{help.removesuffix('.')} ({', '.join(map(str, values))})."
    if flag.is_argument:
        argument = typer.Argument(help=field.description, metavar=metavar, show_default=False)
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[str, argument])
    annotation: Any = list[typed] if is_sequence else typed  # type: ignore[valid-type]
    shown = Annotated[annotation | None, option(help, *names, metavar=metavar, group=group)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=shown)


def from_file(config: Path | None, *names: str) -> dict[str, Any]:
    """Return those settings of a TOML file that a command without a config class has; any command's may be in it."""
    if config is None:
        return {}
    from flipsearch import config as classes
    from flipsearch.core.errors import ConfigError, unknown_name
    from flipsearch.core.settings import read_toml

    kinds = (classes.SearchConfig, classes.ScoreConfig, classes.TrainConfig, classes.EvalConfig, classes.ChatConfig)
    settings, known = read_toml(config), sorted({name for kind in kinds for name in kind.model_fields})
    for name in settings.keys() - {*known}:
        raise ConfigError(unknown_name("setting", name, known))
    return {name: settings[name] for name in names if name in settings}


def given(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the settings that were typed."""
    return {name: value for name, value in settings.items() if value is not None}
