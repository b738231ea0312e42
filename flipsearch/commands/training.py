"""train, evaluate."""

from flipsearch.commands.options import Config, Json, Setting, given, takes_settings


@takes_settings("TrainConfig")
def train(config: Config = None, json: Json = False, **settings: Setting) -> None:
    """Train a model towards what it does under a context, without the context: OPSA, or a baseline method."""
    from flipsearch.api import training
    from flipsearch.commands import console
    from flipsearch.training.processes import MainProcessFailedError, is_main_process

    if not is_main_process():  # of several processes one reports
        try:
            training.train(**given(settings), config=config)
        except MainProcessFailedError as error:
            raise SystemExit(error.exit_code) from None
        return
    with console.bars() as progress:
        on_plan = None if json else progress.show_training_plan
        result = training.train(**given(settings), config=config, progress=progress, on_plan=on_plan)
    console.print_result(result, json, console.show_training)


@takes_settings("EvalConfig")
def evaluate(config: Config = None, json: Json = False, **settings: Setting) -> None:
    """Compare a model with its base: safety, over-refusal, reasoning, composite S, tax."""
    from flipsearch.api import training
    from flipsearch.commands import console

    with console.bars() as progress:
        result = training.evaluate(**given(settings), config=config, progress=progress)
    console.print_result(result, json, console.show_scorecard)
