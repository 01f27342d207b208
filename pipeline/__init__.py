"""Unattended batch inference: score, validate, monitor, evaluate, retrain and promote, one YAML per job.

The package never imports Airflow. Its modules stand on floors (see docs/architecture.md); imports only go down.
"""

__version__ = "0.2.0"
