"""What a model version consists of: files written so that equal trainings give equal bytes, and read only when proven.

Files are ``{relative path: content}``, laid out as MLflow's scikit-learn flavour does, plus the profile and the
reference sample. Must not touch a disk or a registry, and must not believe anything that a version says about itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import warnings
import zipfile
from datetime import UTC
from importlib.metadata import version as installed
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.errors import ModelTampered, TerminalError, TrainerFailed
from pipeline.reports import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.reports import ModelRef, RegisteredModel

# Types of a saved model of the built-in trainer, and of scikit-learn's encoders, beyond those that skops trusts by itself.
TRUSTED_TYPES = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
)
_MODEL, _ACCELERATED, _PROFILE, _REFERENCE, _LEARNT, _REQUIREMENTS, _PYTHON = (
    "model.skops",
    "accelerated.zip",
    "profile.json",
    "reference.parquet",
    "learnt.parquet",
    "requirements.txt",
    "python_env.yaml",
)
# Written by MLflow beside a version's files whenever somebody downloads it by name.
_NOT_OURS = "registered_model_meta"
# The tag with the digest of a version; that of a file has the file's name behind a dot.
_TAG = "sha256"
# The one kind of MLmodel that is ever loaded.
_FLAVORS: dict[str, dict[str, Any]] = {
    "python_function": {"loader_module": "mlflow.sklearn", "model_path": _MODEL, "code": None},
    "sklearn": {"pickled_model": _MODEL, "serialization_format": "skops", "code": None},
}
_SHOWN = 50  # characters of a name that nobody checked
_MLFLOW_TYPES = {"f": "double", "i": "long", "b": "boolean"}


def write(
    estimator: Any,
    *,
    signature_frame: pd.DataFrame,
    signature_output: NDArray[Any],
    profile: Profile,
    reference: pa.Table,
    learnt: NDArray[np.uint64],
    as_of: datetime,
    accelerated: bytes | None = None,
) -> dict[str, bytes]:
    """The files of a version: a function of the arguments and of installed library versions only.

    ``learnt`` holds the ascending identities of the rows that it was trained on, ``accelerated`` the estimator's faster
    form, if it has one. MLflow's own loaders accept the files.
    Raises `TrainerFailed` when skops cannot save the estimator.
    """
    files = {
        _MODEL: _canonical_skops(estimator),
        _PROFILE: _json(profile.model_dump(mode="json")),
        _REFERENCE: _parquet(reference),
        _LEARNT: _parquet(pa.table({"row": learnt})),
        _REQUIREMENTS: "".join(
            f"{name}=={installed(name)}\n" for name in ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")
        ).encode(),
        _PYTHON: _yaml({"python": platform.python_version(), "dependencies": [f"-r {_REQUIREMENTS}"]}),
    }
    if accelerated is not None:
        files[_ACCELERATED] = accelerated
    mlmodel = _mlmodel(files, signature_frame, signature_output, as_of)
    return {**files, "MLmodel": _yaml(mlmodel)}


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 (hex) of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def model_bytes(files: Mapping[str, bytes]) -> int:
    """How large the estimator's file is; profile and reference, which do not score, are left out."""
    return len(files[_MODEL])


def model_digest(digests: Mapping[str, str]) -> str:
    """The digest of a version: SHA-256 (hex) of the canonical JSON of its files' digests."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify_names(there: Mapping[str, bool], registered: RegisteredModel) -> None:
    """Raise `ModelTampered` unless ``there``, {name: whether it is a plain file}, has plain files of the recorded names.

    Before anything is fetched: names are few, whatever lies behind them.
    """
    ref = registered.model
    for name in sorted(there):
        if name not in (*registered.files, _NOT_OURS):
            raise _tampered(ref, f"{'file' if there[name] else 'folder or link'} {name!r} was not registered")
        if not there[name]:
            raise _tampered(ref, f"{name!r} is no plain file")


def verify_digests(there: Mapping[str, str], registered: RegisteredModel) -> None:
    """Raise `ModelTampered`, naming the file, unless ``there``, {file: SHA-256}, is exactly what was registered.

    The file ``registered_model_meta``, which MLflow adds itself, is ignored.
    """
    ref, expected = registered.model, registered.files
    if model_digest(expected) != ref.digest:
        raise _tampered(ref, "the ledger's list of its files does not have the recorded digest", got="another list")
    for name in sorted({*there, *expected} - {_NOT_OURS}):
        if name not in there:
            raise _tampered(ref, f"file {name!r} is missing")
        if name not in expected:
            raise _tampered(ref, f"file {name!r} was not registered")
        if there[name] != expected[name]:
            raise _tampered(ref, f"file {name!r} differs", f"sha256 {expected[name]}", f"sha256 {there[name]}")


def verify(files: Mapping[str, bytes], registered: RegisteredModel) -> None:
    """Raise `ModelTampered`, naming the file, unless ``files`` are what was registered and of the allowed kind.

    Runs no code of the model. The file ``registered_model_meta``, which MLflow adds itself, is ignored.
    """
    verify_digests(digests(files), registered)
    _check_kind(files, registered.model)


def tags(registered: Mapping[str, str]) -> dict[str, str]:
    """A version's tags for the files {name: SHA-256} that it was registered with: the digest of all, and of each."""
    return {_TAG: model_digest(registered), **{f"{_TAG}.{name}": digest for name, digest in registered.items()}}


def verify_tags(there: Mapping[str, str], registered: RegisteredModel) -> None:
    """Raise `ModelTampered` when a version's tags give other digests than the ledger; tags of other names are ignored."""
    expected = tags(registered.files)
    # Versions from before the tags of single files have only that of all of them.
    for name in sorted({_TAG, *(name for name in there if name.startswith(f"{_TAG}."))}):
        if there.get(name) != expected.get(name):
            raise _tampered(
                registered.model, f"tag {name!r} differs from the ledger", f"{expected.get(name)}", f"{there.get(name)}"
            )


def read(
    files: Mapping[str, bytes], ref: ModelRef, trusted_types: Sequence[str]
) -> tuple[Any, Profile, pa.Table, NDArray[np.uint64], bytes | None]:
    """The estimator, the profile, the reference sample, the identities of the training rows and the accelerated form.

    ``files`` are verified.
    The estimator may consist of `TRUSTED_TYPES`, of what skops trusts by itself, and of ``trusted_types``; anything
    else is `ModelTampered`. Raises `TerminalError` when this environment cannot load it.
    """
    skops_io = _skops_io()
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        estimator = skops_io.loads(files[_MODEL], trusted=[*TRUSTED_TYPES, *trusted_types])
    except UntrustedTypesFoundException as err:
        raise ModelTampered(
            f"version {ref.version} of model {ref.name!r} was not loaded: file {_MODEL!r} holds types that are not trusted",
            expected="types of the built-in trainer, or of model.trusted_types",
            got=str(err),
            left_behind="no code of the model was run",
            next_step="if the job's own trainer makes them, add them to model.trusted_types",
        ) from err
    except Exception as err:
        raise TerminalError(
            f"version {ref.version} of model {ref.name!r} is unchanged, but cannot be loaded here",
            expected=f"an environment as in its {_REQUIREMENTS}: {files[_REQUIREMENTS].decode().split()}",
            got=f"{type(err).__name__}: {err}",
            next_step="install those versions, or train again with 'pipeline retrain'",
        ) from err
    learnt = np.empty(0, dtype=np.uint64)
    if _LEARNT in files:  # versions of before it was kept have none
        learnt = pq.read_table(io.BytesIO(files[_LEARNT]))["row"].to_numpy()
    profile = Profile.model_validate_json(files[_PROFILE])
    return estimator, profile, pq.read_table(io.BytesIO(files[_REFERENCE])), learnt, files.get(_ACCELERATED)


def _mlmodel(files: Mapping[str, bytes], frame: pd.DataFrame, output: NDArray[Any], as_of: datetime) -> dict[str, Any]:
    """MLflow's description of the version, without anything that differs between registries."""
    from skops.io import get_untrusted_types

    inputs = [{"name": str(name), **_signature(kind.kind)} for name, kind in frame.dtypes.items()]
    python, sklearn = _FLAVORS["python_function"], _FLAVORS["sklearn"]
    return {
        "flavors": {
            "python_function": {
                **python,
                "env": {"virtualenv": _PYTHON},
                "predict_fn": "predict",
                "python_version": platform.python_version(),
            },
            "sklearn": {
                **sklearn,
                "sklearn_version": installed("scikit-learn"),
                # For users of MLflow's loaders; `read` does not look at it.
                "skops_trusted_types": get_untrusted_types(data=files[_MODEL]),
            },
        },
        "mlflow_version": installed("mlflow"),
        "model_uuid": model_digest(digests(files))[:32],
        "signature": {
            "inputs": json.dumps(inputs),
            "outputs": json.dumps([_signature(output.dtype.kind)]),
            "params": None,
        },
        "utc_time_created": f"{as_of.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}",
    }


def _signature(kind: str) -> dict[str, Any]:
    """MLflow's column specification for numpy's kind of type."""
    return {"type": _MLFLOW_TYPES.get(kind, "string"), "required": True}


def _skops_io() -> Any:
    """The module skops.io, imported quietly."""
    # The import reads every attribute of every loaded module: in an Airflow task 1,500 deprecation warnings of others.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skops.io
    return skops.io


def _canonical_skops(estimator: Any) -> bytes:
    """The skops archive of ``estimator`` without what varies between equal estimators.

    skops names objects and archive members by memory address or at random; here they are numbered as they appear.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(_skops_io().dumps(estimator)))
    except Exception as err:
        raise TrainerFailed(
            f"an estimator of type {type(estimator).__qualname__} cannot be saved with skops",
            expected="an estimator made of scikit-learn, numpy and plain Python objects",
            got=f"{type(err).__name__}: {err}",
            next_step="change the trainer's function",
        ) from err
    state, members = json.loads(archive.read("schema.json")), dict[str, str]()
    _renumber(state, {}, members)
    canonical = io.BytesIO()
    with archive, zipfile.ZipFile(canonical, "w") as out:
        # A ZipInfo without a date gets the first day that the format knows; entries are stored, not compressed.
        out.writestr(zipfile.ZipInfo("schema.json"), json.dumps(state, separators=(",", ":")))
        for member, name in members.items():
            out.writestr(zipfile.ZipInfo(name), archive.read(member))
    return canonical.getvalue()


def _renumber(node: Any, numbers: dict[int, int], members: dict[str, str]) -> None:
    """Give the objects below ``node`` numbers, and their archive members names, in order of appearance."""
    if isinstance(node, list):
        for item in node:
            _renumber(item, numbers, members)
    if not isinstance(node, dict):
        return
    if node.get("__loader__") == "JsonNode":
        # Whether two equal texts or numbers are one object is chance, and means nothing for immutable values.
        del node["__id__"]
    elif isinstance(number := node.get("__id__"), int):
        # From 1: skops takes 0 for "no number".
        node["__id__"] = numbers.setdefault(number, len(numbers) + 1)
    if isinstance(member := node.get("file"), str):
        node["file"] = members.setdefault(member, f"{len(members) + 1}{PurePath(member).suffix}")
    for item in node.values():
        _renumber(item, numbers, members)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Part of a model version, not a published file: it has no partition and no manifest.
    pq.write_table(table.combine_chunks().replace_schema_metadata(None), sink, compression="zstd")  # noqa: TID251
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _json(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()


def _yaml(document: Any) -> bytes:
    return yaml.safe_dump(document, sort_keys=True).encode()


def _check_kind(files: Mapping[str, bytes], ref: ModelRef) -> None:
    """Refuse a version whose MLmodel asks MLflow for anything but its scikit-learn loader on our skops file."""
    try:
        flavors = yaml.safe_load(files["MLmodel"])["flavors"]
        asked = {name: {key: flavor.get(key) for key in _FLAVORS.get(name, ())} for name, flavor in flavors.items()}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise _tampered(ref, "file 'MLmodel' cannot be read", got=f"{type(err).__name__}: {err}") from err
    if asked != _FLAVORS:
        # Named, never printed: aliases let a few lines of YAML stand for more text than fits any memory.
        odd = [name for name in sorted({*asked, *_FLAVORS}, key=str) if asked.get(name) != _FLAVORS.get(name)]
        got = f"something else under {', '.join(str(name)[:_SHOWN] for name in odd)}"
        raise _tampered(ref, "file 'MLmodel' is not of the allowed kind", f"flavors {_FLAVORS}", got)


def _tampered(
    ref: ModelRef, what: str, expected: str = "the files as they were registered", got: str = ""
) -> ModelTampered:
    return ModelTampered(
        f"version {ref.version} of model {ref.name!r} was not loaded: {what}",
        expected=expected,
        got=got,
        left_behind="no code of the model was run",
        next_step="find out who changed the files; meanwhile roll back with 'pipeline rollback', or train again",
    )
