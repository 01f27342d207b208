"""Make broken job files visible: Airflow shows this file's import error, which names every file and field.

The DAGs (airflow reads this word to find DAG files) of valid jobs are declared by the other files and stay untouched.
"""

from __future__ import annotations

import declared

from pipeline import jobfile
from pipeline.errors import InvalidJob

_, BROKEN = jobfile.load_all(declared.jobs_folder())
if BROKEN:
    raise InvalidJob("\n".join(str(broken.error()) for broken in BROKEN))
