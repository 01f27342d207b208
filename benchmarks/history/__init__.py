"""What an interval, `status` and DAG parsing cost beside a long history and many jobs."""
