"""Buttons on a task: the HTML report it wrote, and the model version it used or made."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink


class ReportLink(BaseOperatorLink):
    """The report of this task's run, served by the page in ``pipeline_pages``."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the report's URL; empty when the task wrote none."""
        result = _result(ti_key)
        return f"/pipeline/reports/{result['job']}/{result['report']}" if result.get("report") else ""


class ModelLink(BaseOperatorLink):
    """The facts of the model version that this task used or made."""

    name = "Model version"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the version's URL; empty when the task knows none."""
        result = _result(ti_key)
        return f"/pipeline/models/{result['job']}/{result['model_version']}" if result.get("model_version") else ""


def _result(ti: Any) -> dict[str, Any]:
    # Without the index the results of all instances of a mapped task come, as a list.
    result = ti.xcom_pull(task_ids=ti.task_id, key="return_value", map_indexes=ti.map_index)
    return result if isinstance(result, dict) else {}
