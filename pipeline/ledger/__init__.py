"""The ledger: append-only history of plans, manifests, verdicts, incidents, decisions, promotions and models.

SQL through SQLAlchemy Core. Rows are only ever added. Must not decide anything, and must not read a clock of its own.
"""

from pipeline.ledger.history import Ledger

__all__ = ["Ledger"]
