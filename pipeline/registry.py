"""The model registry: versions, the champion alias, and files that are proven unchanged before they are loaded.

Owns MLflow. Must not decide anything: which version is champion is decided elsewhere and recorded in the ledger.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

# MLflow reads these when it is imported or first used; what the deployment sets wins. With one retry, a server that
# does not answer is given up after about 17 seconds (by default: minutes).
os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        **os.environ,
    }
)

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.db.utils import _initialize_tables

from pipeline import modelfiles
from pipeline.errors import AliasConflict, InvalidRequest, RegistryUnavailable
from pipeline.reports import ModelRef, Profile, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from numpy.typing import NDArray

CHAMPION = "champion"
_LOADED_AT_ONCE = 4
_PARAMETERS_AT_ONCE = 100  # what MLflow takes in one request

_loaded: dict[tuple[str, str, int, str, tuple[str, ...]], LoadedModel] = {}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified model version in memory: its estimator, profile, reference sample, and what it learnt from.

    Equal to itself only, so that what follows from it can be kept with it. ``accelerated`` is its faster form for
    `pipeline.acceleration`, ``None`` without one; ``size`` are bytes of the estimator.
    """

    ref: ModelRef
    estimator: Any
    profile: Profile
    reference: pa.Table
    learnt: NDArray[np.uint64]
    accelerated: bytes | None
    size: int


class Registry:
    """The registry at an MLflow tracking URI; nothing is contacted before the first call.

    ``artifacts`` is where a registry that is a database keeps its files; ``None`` leaves that to an MLflow server.
    Every method raises `RegistryUnavailable` when the registry does not answer, and `InvalidRequest` when it refuses.
    """

    def __init__(self, tracking_uri: str, artifacts: Path | None) -> None:
        self._uri = tracking_uri
        self._artifacts = artifacts

    def register(
        self,
        name: str,
        estimator: Any,
        *,
        signature_frame: pd.DataFrame,
        signature_output: NDArray[Any],
        profile: Profile,
        reference: pa.Table,
        learnt: NDArray[np.uint64],
        as_of: datetime,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        accelerated: bytes | None = None,
    ) -> RegisteredModel:
        """The next version of ``name``, with the digest of each of its files.

        The files depend on the arguments and on installed library versions only: registering the same training
        elsewhere gives the same digest. Not idempotent: every call makes a version. Raises `TrainerFailed` when skops
        cannot save the estimator.
        """
        files = modelfiles.write(
            estimator,
            signature_frame=signature_frame,
            signature_output=signature_output,
            profile=profile,
            reference=reference,
            learnt=learnt,
            as_of=as_of,
            accelerated=accelerated,
        )
        digests = modelfiles.digests(files)
        with self._asking(f"register model {name!r}", "perhaps an MLflow run without a version"):
            version = self._upload(name, files, as_of, parameters, metrics, {**tags, **modelfiles.tags(digests)})
        return RegisteredModel(
            model=ModelRef(name=name, version=version, digest=modelfiles.model_digest(digests)),
            files=digests,
            as_of=as_of,
            train_start=profile.train_start,
            train_end=profile.train_end,
            holdout_end=profile.holdout_end,
        )

    def champion(self, name: str) -> int | None:
        """The version behind the alias ``champion``; ``None`` when the model or the alias does not exist."""
        with self._asking(f"read the champion of model {name!r}"):
            # The whole of a model takes longer with every version; it is asked for only to tell why there is none.
            with suppress(MlflowException):
                return int(self._client.get_model_version_by_alias(name, CHAMPION).version)
            try:
                alias = self._client.get_registered_model(name).aliases.get(CHAMPION)
            except MlflowException as err:
                if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                alias = None
        return None if alias is None else int(alias)

    def versions(self, name: str) -> list[int]:
        """All versions of ``name`` in ascending order; empty when the model does not exist."""
        return sorted(self.tags(name))

    def tags(self, name: str) -> dict[int, dict[str, str]]:
        """The tags of every version of ``name``; empty when the model does not exist."""
        found: dict[int, dict[str, str]] = {}
        token = None
        with self._asking(f"list the versions of model {name!r}"):
            while True:
                page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
                found |= {int(version.version): dict(version.tags) for version in page}
                token = page.token
                if not token:
                    return found

    def move_alias(self, name: str, version: int, *, expected: int | None) -> None:
        """Point ``champion`` at ``version``, provided that it points at ``expected`` (``None``: nowhere) now.

        Raises `AliasConflict` when it points elsewhere, before or after the write, and `InvalidRequest` when the
        version does not exist.
        """
        self._check_alias(name, expected, "nothing was written")
        with self._asking(f"make version {version} champion of model {name!r}"):
            self._check_version(name, version)
            try:
                self._client.set_registered_model_alias(name, CHAMPION, str(version))
            except MlflowException as err:
                # Two first promotions at the same moment; who was first shows below.
                if err.error_code != "BAD_REQUEST":
                    raise
        self._check_alias(name, version, f"the alias was set to version {version}, and then moved by somebody else")

    def tag(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set ``tags`` on a version, replacing values of the same keys. Raises `InvalidRequest` for no such version."""
        with self._asking(f"tag version {version} of model {name!r}"):
            self._check_version(name, version)
            for key, value in tags.items():
                self._client.set_model_version_tag(name, str(version), key, value)

    def load(self, registered: RegisteredModel, trusted_types: Sequence[str] = ()) -> LoadedModel:
        """The version that ``registered`` recorded, loaded only after every file proved to be the recorded one.

        ``trusted_types`` are further Python types that its estimator may consist of; what the version itself declares
        to be trusted is ignored. A process loads a version once. Raises `ModelTampered` naming the file that differs
        before any code of the model runs, and `InvalidRequest` when the version does not exist.
        """
        ref = registered.model
        key = (self._uri, ref.name, ref.version, ref.digest, tuple(trusted_types))
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = self._load(registered, trusted_types)
            if len(_loaded) > _LOADED_AT_ONCE:
                del _loaded[next(iter(_loaded))]
        return model

    def url(self, name: str, version: int) -> str:
        """The path of a version's page in the MLflow UI, relative to the UI's address."""
        return f"#/models/{name}/versions/{version}"

    @cached_property
    def _client(self) -> MlflowClient:
        prepare(self._uri)
        if re.match(r"(sqlite|postgresql|mysql|mssql)\b", self._uri):
            # MLflow itself would try again for an hour before it says that the database does not answer.
            engine = sa.create_engine(self._uri)
            try:
                sa.inspect(engine).get_table_names()
            finally:
                engine.dispose()
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _load(self, registered: RegisteredModel, trusted_types: Sequence[str]) -> LoadedModel:
        files = self._fetch(registered)
        modelfiles.verify(files, registered)
        return LoadedModel(
            registered.model, *modelfiles.read(files, registered.model, trusted_types), modelfiles.model_bytes(files)
        )

    def _fetch(self, registered: RegisteredModel) -> dict[str, bytes]:
        """The content of a version's files, in memory: what is verified is what is loaded.

        Nothing is copied before the names are the recorded ones, and nothing is held before the digests are.
        """
        ref = registered.model
        with (
            tempfile.TemporaryDirectory(prefix="model-") as scratch,
            self._asking(f"fetch version {ref.version} of model {ref.name!r}"),
        ):
            version = self._check_version(ref.name, ref.version)
            modelfiles.verify_tags(version.tags, registered)
            place = self._client.get_model_version_download_uri(ref.name, str(ref.version))
            store = get_artifact_repository(place, tracking_uri=self._uri)
            modelfiles.verify_names(_listing(store), registered)
            store.download_artifacts("", scratch)
            there = {path.relative_to(scratch).as_posix(): path for path in Path(scratch).rglob("*") if path.is_file()}
            modelfiles.verify_digests({name: _digest(path) for name, path in there.items()}, registered)
            return {name: there[name].read_bytes() for name in registered.files}

    def _upload(
        self,
        name: str,
        files: Mapping[str, bytes],
        as_of: datetime,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> int:
        """A run with parameters and metrics, the model logged by it, and the version that points there."""
        client, at = self._client, int(as_of.timestamp() * 1000)
        experiment = self._experiment(name)
        run = client.create_run(experiment, start_time=at, run_name=f"{name} {as_of:%Y-%m-%d %H:%M}").info.run_id
        try:
            logged = client.create_logged_model(experiment, name, source_run_id=run, params=dict(parameters))
            client.log_batch(run, metrics=[Metric(k, v, at, 0, model_id=logged.model_id) for k, v in metrics.items()])
            entries = [Param(key, value) for key, value in parameters.items()]
            for first in range(0, len(entries), _PARAMETERS_AT_ONCE):
                client.log_batch(run, params=entries[first : first + _PARAMETERS_AT_ONCE])
            client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
            with tempfile.TemporaryDirectory(prefix="register-") as folder:
                for path, content in files.items():
                    (Path(folder) / path).write_bytes(content)
                client.log_model_artifacts(logged.model_id, folder)
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
            self._create_model(name)
            # Not "models:/<id>", which MLflow would resolve through a global tracking URI.
            version = client.create_model_version(
                name, logged.artifact_location, run_id=run, tags=dict(tags), model_id=logged.model_id
            ).version
        except BaseException:
            with suppress(MlflowException):
                client.set_terminated(run, "FAILED", end_time=at)
            raise
        client.set_terminated(run, "FINISHED", end_time=at)
        return int(version)

    def _experiment(self, name: str) -> str:
        """The id of the experiment ``name``, created when it does not exist."""
        if (found := self._client.get_experiment_by_name(name)) is None:
            place = None if self._artifacts is None else (self._artifacts / name).resolve().as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException as err:
                # Another process was first.
                if (found := self._client.get_experiment_by_name(name)) is None:
                    raise err
        return str(found.experiment_id)

    def _create_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _check_version(self, name: str, version: int) -> ModelVersion:
        try:
            return self._client.get_model_version(name, str(version))
        except MlflowException as err:
            if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = ", ".join(map(str, self.versions(name))) or "none"
            raise InvalidRequest(
                f"model {name!r} has no version {version}",
                expected=f"a version that exists ({known})",
                next_step="choose one of them, or train with 'pipeline retrain'",
            ) from err

    def _check_alias(self, name: str, expected: int | None, left_behind: str) -> None:
        current = self.champion(name)
        if current != expected:
            raise AliasConflict(
                f"alias {CHAMPION!r} of model {name!r} is not where it should be",
                expected="no alias" if expected is None else f"version {expected}",
                got="no alias" if current is None else f"version {current}",
                left_behind=left_behind,
                next_step="compare 'pipeline status' with the registry, then promote or roll back again",
            )

    @contextmanager
    def _asking(self, action: str, left_behind: str = "nothing was written") -> Iterator[None]:
        """Turn what MLflow, its database and its server raise into this product's errors."""
        try:
            yield
        except (MlflowException, sa.exc.DBAPIError, OSError) as err:
            status = err.get_http_status_code() if isinstance(err, MlflowException) else 503
            kind = RegistryUnavailable if status >= 500 or status == 429 else InvalidRequest
            # A cause is printed with the traceback, and MLflow quotes the address as it is.
            raise kind(
                f"cannot {action} at {_without_credentials(self._uri)}",
                expected="an MLflow registry that answers",
                got=f"{type(err).__name__}: {_without_credentials(str(err))[:300]}",
                left_behind=left_behind,
                next_step="check MLFLOW_TRACKING_URI, and that the MLflow server or database is up",
            ) from (None if _without_credentials(self._uri) != self._uri else err)


def prepare(tracking_uri: str) -> None:
    """Create the database of a SQLite tracking URI if its file does not exist; no other URI is touched.

    Safe to call from many processes at once: MLflow's own migration is not, and leaves a broken database when two
    processes run it. The file appears complete or not at all.
    """
    if not tracking_uri.startswith("sqlite:") or not (name := sa.make_url(tracking_uri).database):
        return
    path = Path(name)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        engine = sa.create_engine(f"sqlite:///{draft}")
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()
        draft.replace(path)


def _listing(store: ArtifactRepository) -> dict[str, bool]:
    """The entries of a version at the top, and whether each is a plain file: no folder, link, pipe or device."""
    if not isinstance(store, LocalArtifactRepository):
        return {entry.path: not entry.is_dir for entry in store.list_artifacts()}
    # MLflow follows links, fails at broken ones, and walks in circles.
    folder = Path(store.artifact_dir)
    return {path.name: stat.S_ISREG(path.lstat().st_mode) for path in folder.iterdir()} if folder.is_dir() else {}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_credentials(text: str) -> str:
    """``text`` with the user and password of every address in it blotted out."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
