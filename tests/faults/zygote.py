"""A process that has imported everything and forks one child per scoring run, so that an attempt costs no imports.

One JSON line on standard input is one run; the answers are the child's number and, when it has ended, its status: a number
as `os.waitstatus_to_exitcode` gives it, and the error that the run raised.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys

# A run that takes longer says on standard error where it is, before the parent gives up.
_PATIENCE = 45.0


def main() -> None:
    import great_expectations.render.view  # noqa: F401
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import skops.io  # noqa: F401
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    from pipeline.runtime import Runtime

    configure_mappers()  # half of what a run costs otherwise
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            os._exit(score(Runtime, order, tell))
        os.close(tell)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        with os.fdopen(told) as stream:
            error = stream.read()
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "error": error}), flush=True)


def score(runtime_class, order, tell: int) -> int:
    from pipeline.intervals import parse_instant

    os.environ.update(order["environment"])
    faulthandler.dump_traceback_later(_PATIENCE)
    try:
        with runtime_class.open() as runtime:
            list(runtime.score(runtime.job(order["job"]), parse_instant(order["start"]), model=order["model"]))
    except BaseException as error:
        os.write(tell, f"{type(error).__name__}: {error}".encode()[:4000])
        return 1
    return 0


if __name__ == "__main__":
    main()
