"""How right the decisions are: alarms, classifications and estimates, measured by simulation and on real data."""
