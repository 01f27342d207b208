"""Publishing on object stores: one request puts the whole object, on S3 only if nobody else has put one meanwhile.

Must not know Parquet, and must not stream into the final object: that would publish a part of it when the stream breaks.
"""

from __future__ import annotations

import base64
import errno
import re
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec.asyn import sync as run_in_loop

from pipeline.storage.places import Place, Present, older, remove_where, temporary
from pipeline.storage.targets import Target, join, sibling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

# What S3 takes at most in one request, and as parts of one object.
SINGLE_REQUEST_BYTES = 5 * 2**30
PART_BYTES = 64 * 2**20
_MOST_PARTS = 10_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Objects:
    """One partition's published object and its versions on any fsspec file system, put as a whole.

    What is published is compared before it is replaced, but between the two another writer may come first: two
    simultaneous writers of one partition are NOT fenced here, as they are on the local disk and on S3.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._place = Place.of(target.uri)
        self._fs = self._place.fs

    def staging(self, scratch: Path) -> Path:
        """A new local path for an unfinished file."""
        return temporary(scratch, self._target.partition.replace("/", "~"))

    def locked(self) -> AbstractContextManager[None]:
        """Nothing: an object store has no locks."""
        return nullcontext()

    @contextmanager
    def opened(self) -> Iterator[Present | None]:
        """The published object; ``None`` when there is none."""
        try:
            state = self._place.state()
            stream = self._place.open()
        except FileNotFoundError:
            yield None
            return
        with stream:
            yield Present(str(state), state[0], lambda: stream)

    def keep(self, present: Present) -> str | None:
        """Copy the published object to its immutable name, which makes that as young as now.

        The name, or ``None`` when the published object is no longer ``present``.
        """
        version = self._version(present)
        self._fs.makedirs(version.path.rpartition("/")[0], exist_ok=True)
        self._fs.cp_file(self._place.path, version.path)
        return version.uri

    def put(self, staged: Path, sha256: str, present: Present | None) -> bool:
        """Put a complete local file where ``present`` is published; false when something else is published there now."""
        self._fs.put_file(str(staged), self._place.path)
        return True

    def remove(self, present: Present) -> bool:
        """Remove the published object; false when it is no longer ``present``."""
        self._fs.rm_file(self._place.path)
        return True

    def sync(self) -> None:
        """Nothing: an object store answers when it has stored."""

    @staticmethod
    def sweep(root: str, staged_before: datetime, superseded_before: datetime) -> list[str]:
        """Remove leftovers and superseded objects by age; the URIs that were removed."""
        return [
            *remove_where(sibling(root, "staging"), older(staged_before)),
            *remove_where(sibling(root, "versions"), older(superseded_before)),
        ]

    def _version(self, present: Present) -> Place:
        return Place.of(join(self._target.versions, f"{present.sha256}.parquet"))


class S3(Objects):
    """The same on any S3-compatible store, fenced by conditional requests, which the store has to honour.

    A request that is repeated because its answer was lost finds its own object in the way: what is there decides then.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._at = _address(self._place)

    @contextmanager
    def opened(self) -> Iterator[Present | None]:
        """The published object; its digest is the one that was recorded by `put`, if that has put it."""
        try:
            head = self._fs.call_s3("head_object", **self._at)
        except FileNotFoundError:
            yield None
            return
        recorded = head.get("Metadata", {}).get("sha256", "")
        with ExitStack() as closing:
            yield Present(
                head["ETag"],
                head["ContentLength"],
                lambda: closing.enter_context(self._pinned(head["ETag"])),
                recorded if _SHA256.fullmatch(recorded) else None,
            )

    def keep(self, present: Present) -> str | None:
        """Copy the published object, if it is still ``present``, to its immutable name; the name."""
        version = self._version(present)
        try:
            self._copy(version, present)
        except Exception as err:
            if _refused(err):
                return None
            raise
        return version.uri

    def put(self, staged: Path, sha256: str, present: Present | None) -> bool:
        """Put a complete local file where ``present`` is published; false when something else is published there now."""
        condition = {"IfMatch": present.token} if present else {"IfNoneMatch": "*"}
        try:
            self._upload(staged, sha256, condition)
        except Exception as err:
            with self.opened() as now:
                if now and now.sha256 == sha256:
                    return True
            if _refused(err):
                return False
            raise
        return True

    def remove(self, present: Present) -> bool:
        """Remove the published object; false when it is no longer ``present``."""
        try:
            self._fs.call_s3("delete_object", **self._at, IfMatch=present.token)
        except Exception as err:
            with self.opened() as now:
                if now is None:
                    return True
            if _refused(err):
                return False
            raise
        return True

    @staticmethod
    def sweep(root: str, staged_before: datetime, superseded_before: datetime) -> list[str]:
        """Remove leftovers and superseded objects by age, and abort uploads in parts that nobody completed."""
        removed = Objects.sweep(root, staged_before, superseded_before)
        for folder in (root, sibling(root, "versions")):
            place = Place.of(folder)
            for upload in _unfinished(place):
                if upload["Initiated"] < staged_before:
                    at = {**_address(place), "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    with suppress(FileNotFoundError):
                        place.fs.call_s3("abort_multipart_upload", **at)
                    removed.append(f"s3://{at['Bucket']}/{at['Key']}?uploadId={at['UploadId']}")
        return removed

    def _pinned(self, token: str) -> BinaryIO:
        """The object's bytes; s3fs demands the same ETag for every range that it asks for."""
        stream: Any = self._place.open()
        if stream.details["ETag"] != token:
            stream.close()
            raise OSError(errno.EBUSY, f"{self._place.uri} was replaced while it was opened")
        return stream  # type: ignore[no-any-return]

    def _copy(self, version: Place, present: Present) -> None:
        source = {"CopySource": {**self._at}, "CopySourceIfMatch": present.token}
        if present.size <= SINGLE_REQUEST_BYTES:
            self._fs.call_s3("copy_object", **_address(version), **source)
            return

        def send(start: int, end: int, **part: Any) -> str:
            made = self._fs.call_s3("upload_part_copy", **part, **source, CopySourceRange=f"bytes={start}-{end - 1}")
            return str(made["CopyPartResult"]["ETag"])

        self._in_parts(_address(version), present.size, present.sha256, send)

    def _upload(self, staged: Path, sha256: str, condition: dict[str, str]) -> None:
        size = staged.stat().st_size
        if size <= SINGLE_REQUEST_BYTES:
            self._put_at_once(staged, sha256, condition)
            return
        with staged.open("rb") as source:

            def send(start: int, end: int, **part: Any) -> str:
                source.seek(start)
                return str(self._fs.call_s3("upload_part", **part, Body=source.read(end - start))["ETag"])

            self._in_parts(self._at, size, sha256, send, condition)

    def _put_at_once(self, staged: Path, sha256: str, condition: dict[str, str]) -> None:
        arguments = {
            **self._fs.s3_additional_kwargs,
            **self._fs.req_kw,
            **self._at,
            **condition,
            "Metadata": {"sha256": sha256},
            "ChecksumAlgorithm": "SHA256",
            "ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode(),
        }

        async def request() -> None:
            # Not through `call_s3`: its retry would go on reading the file where the broken request has stopped.
            await self._fs.set_session()
            client = await self._fs.get_s3(self._at["Bucket"])
            known = client.meta.service_model.operation_model("PutObject").input_shape.members
            with staged.open("rb") as body:
                await client.put_object(Body=body, **{name: arguments[name] for name in arguments if name in known})

        run_in_loop(self._fs.loop, request)

    def _in_parts(
        self,
        at: dict[str, str],
        size: int,
        sha256: str,
        send: Callable[..., str],
        condition: dict[str, str] | None = None,
    ) -> None:
        """Make an object that is too large for one request; it is seen when it is complete, under the condition."""
        started = self._fs.call_s3("create_multipart_upload", **at, Metadata={"sha256": sha256})
        upload = {**at, "UploadId": started["UploadId"]}
        step = max(PART_BYTES, -(-size // _MOST_PARTS))
        try:
            parts = [
                {"PartNumber": number, "ETag": send(start, min(start + step, size), PartNumber=number, **upload)}
                for number, start in enumerate(range(0, size, step), 1)
            ]
            self._fs.call_s3(
                "complete_multipart_upload", **upload, **(condition or {}), MultipartUpload={"Parts": parts}
            )
        except BaseException:
            with suppress(Exception):  # the sweep does it otherwise
                self._fs.call_s3("abort_multipart_upload", **upload)
            raise


def serves_s3(fs: Any) -> bool:
    """Whether the fsspec file system speaks S3."""
    return "s3" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _address(place: Place) -> dict[str, str]:
    bucket, key, _ = place.fs.split_path(place.path)
    return {"Bucket": bucket, "Key": key}


def _refused(err: BaseException) -> bool:
    """Whether the store has answered that its condition does not hold (any more)."""
    answer = getattr(err, "response", None) or getattr(err.__cause__, "response", None) or {}
    status, code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code")
    return status in (409, 412) or code in ("NoSuchKey", "NoSuchUpload")


def _unfinished(folder: Place) -> Iterator[dict[str, Any]]:
    """The uploads in parts below the folder that are neither complete nor aborted."""
    at = _address(folder)
    after: dict[str, str] = {}
    while True:
        prefix = f"{at['Key'].rstrip('/')}/"
        page = folder.fs.call_s3("list_multipart_uploads", Bucket=at["Bucket"], Prefix=prefix, **after)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
