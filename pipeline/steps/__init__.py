"""Use cases: each module reads, decides, writes and returns one report. No wall clock, no Airflow, no global state."""
