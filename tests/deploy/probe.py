"""A task that touches everything the stack promises to tasks."""

from airflow.sdk import dag, task


@dag(dag_id="probe", schedule=None, is_paused_upon_creation=False)
def probe() -> None:
    @task
    def reach() -> None:
        import os
        from pathlib import Path
        from urllib.request import urlopen

        import sqlalchemy

        with sqlalchemy.create_engine(os.environ["PIPELINE_LEDGER_URL"]).begin() as connection:
            connection.execute(sqlalchemy.text("SELECT count(*) FROM manifests"))
            user = connection.execute(sqlalchemy.text("SELECT current_user")).scalar_one()
        registry = urlopen(os.environ["MLFLOW_TRACKING_URI"] + "/health").read().decode()
        Path(os.environ["PIPELINE_HOME"], "probe").write_text(f"{user} {registry}")

    reach()


probe()
