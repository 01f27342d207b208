"""Whichever request of publishing breaks, and however: readers see the old object or the new one, and a rerun converges."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import PublishConflict, StorageUnavailable
from pipeline.storage import Storage, Target
from tests.faults.object_store import BREAKS, Proxy, configured, server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY = "ds=2026-01-01"
SCHEMA = pa.schema([("row_id", pa.int64()), ("score", pa.float64())])
ROWS = 20_000
# One request; one and the first repetition of it by the client; everything from there on.
LENGTHS = (1, 2, 100)


@dataclass(frozen=True)
class Store:
    """One S3 server, reached directly and through a proxy that breaks connections."""

    url: str
    proxy: Proxy
    scratch: Path
    storage: Storage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with server() as url:
        proxy = Proxy(url)
        yield Store(url, proxy, tmp_path / "scratch", Storage(tmp_path / "scratch"))
        proxy.close()


def publish(storage: Storage, target: Target, seed: int) -> str:
    table = pa.table([np.arange(ROWS), np.random.default_rng(seed).random(ROWS)], schema=SCHEMA)
    with storage.stage(target, SCHEMA, seen=storage.current(target)) as staged:
        staged.write(table.to_batches()[0])
        return staged.publish(expected_rows=ROWS, unique=["row_id"]).sha256


def contents(uri: str) -> dict[str, str]:
    """The digest of every object below the URI, by its name."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    return {path.rpartition("/")[2]: hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(uri)}


def published_once(store: Store, name: str) -> Target:
    target = Target(f"s3://bucket/{name}/predictions", DAY)
    publish(store.storage, target, 1)
    return target


WORK: dict[str, Callable[[Storage, Target], object]] = {
    "publish": lambda storage, target: publish(storage, target, 2),
    "withdraw": lambda storage, target: storage.withdraw(target),
    "snapshot": lambda storage, target: storage.snapshot(target),
}


@pytest.mark.parametrize("work", WORK)
def test_a_connection_that_breaks_at_any_request_leaves_whole_objects_and_a_rerun_converges(
    store: Store, scale: Callable[[int, int], int], figures: Callable[..., None], work: str
) -> None:
    with configured(store.url):
        target = published_once(store, "whole")
        before = contents(target.root)
        with configured(store.proxy.url):
            store.proxy.mend()
            WORK[work](store.storage, target)
            requests = store.proxy.requests
        after, versions = contents(target.root), contents(target.versions)

    attacks = list(product(range(1, requests + 1), BREAKS, LENGTHS))[:: scale(5, 1)]
    struck = succeeded = 0
    for number, how, times in attacks:
        with configured(store.url):
            target = published_once(store, f"{number}-{how}-{times}")
        with configured(store.proxy.url):
            store.proxy.break_at(number, how, times)
            try:
                WORK[work](store.storage, target)
                done = True
            except (StorageUnavailable, PublishConflict):
                done = False
            assert store.proxy.struck > 0, (number, how, times)
            struck += store.proxy.struck
            succeeded += done
            store.proxy.mend()
        with configured(store.url):
            left, kept = contents(target.root), contents(target.versions)
            assert left in ([after] if done else [before, after]), (number, how, times)
            # What is no longer published was kept first, under the digest of its bytes.
            assert all(name == f"{sha256}.parquet" for name, sha256 in kept.items())
            assert left == before or kept == versions
            WORK[work](store.storage, target)
            assert (contents(target.root), contents(target.versions)) == (after, versions)
    assert list(store.scratch.iterdir()) == []
    assert len(attacks) >= requests
    figures(f"object store, {work}", requests=requests, attacks=len(attacks), struck=struck, succeeded=succeeded)
