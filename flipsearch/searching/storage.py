"""Writes a finished search as an Optuna study on disk, for Optuna's own tools:

    optuna-dashboard sqlite:///reports/<study>/optuna.db

It is written from the study and never read by flipsearch: the ledger alone is what a search continues from. A context
is a trial at its point of the space; its value is the search flip rate, its constraint the over-refusal above the cap,
and an arm that was pruned or stopped early is PRUNED with its value so far. Placebos are left out: they were not
optimised.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import StaticPool

from flipsearch.core.errors import StudyError
from flipsearch.core.files import atomic_write
from flipsearch.core.studies import RefusalCap, Study, Trial
from flipsearch.searching.baseline import counts
from flipsearch.searching.setup import Space

STORAGE_FILE = "optuna.db"
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def write_storage(study: Study, space: Space, folder: Path) -> None:
    """Write optuna.db into the folder of a finished study: to a temporary file, then renamed.

    Raises StudyError if it cannot be written.
    """
    path = folder / STORAGE_FILE
    arms = sorted((trial for trial in study.trials if trial.role == "arm"), key=lambda trial: trial.number)
    cap = study.refusal_cap
    assert cap is not None  # a search has one
    try:
        with atomic_write(path) as partial:
            _write([_optuna_trial(arm, space, cap) for arm in arms], study.name, partial)
    except sqlite3.Error as error:
        raise StudyError(f"cannot write '{path}': {error}; free the disk or choose another folder.") from error


def _write(trials: list[FrozenTrial], name: str, path: Path) -> None:
    """Fill a database in memory and copy it: hundreds of small commits would each wait for the disk."""
    in_memory = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=in_memory)
    try:
        optuna.create_study(storage=storage, study_name=name, direction="maximize").add_trials(trials)
        with closing(storage.engine.raw_connection()) as pooled, closing(sqlite3.connect(path)) as file:
            connection = pooled.driver_connection
            assert isinstance(connection, sqlite3.Connection)
            connection.backup(file)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _optuna_trial(trial: Trial, space: Space, cap: RefusalCap) -> FrozenTrial:
    context, search = trial.context, trial.search
    # A child of operators has no point in the space.
    point = None if context.operator else space.point_of(context)
    state, value = STATES[trial.state], None if trial.state == "failed" else search.flip_rate.value
    if state is TrialState.COMPLETE and value is None:
        state = TrialState.FAIL
    described = {"context_id": context.context_id, "trial": trial.number, "text": context.text}
    lineage = {"operator": context.operator, "parents": list(context.parents)} if context.operator else {}
    measured = {"flip": counts(search.flip_rate), "over_refusal": counts(search.over_refusal_rate)}
    confirmed = {"confirm_flip_rate": trial.confirm.flip_rate.value} if trial.confirm else {}
    # Few attributes with much in each: every one of them takes four statements to the database.
    attributes = {"context": described | lineage, "search": {"rung": trial.rung + 1} | measured | confirmed}
    refused = cap.rate(search).value
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=point or {},
        distributions=dict(space.distributions(point)) if point else {},
        constraints=None if refused is None else {"over_refusal": refused - cap.most},
        user_attrs=attributes,
    )
