"""NannyML's default drift detection: a ``UnivariateDriftCalculator`` fitted on the reference, each batch as one chunk.

Defaults: Jensen-Shannon distances, alert above the mean of the reference's chunks plus three standard deviations. There
is no default verdict on all columns together; any alert counts as an alarm.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from benchmarks.peers.protocol import EVENT_TIME, Options, Verdict, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

os.environ.update(
    {
        # Read when the library is used: no usage statistics.
        "NML_DISABLE_USAGE_LOGGING": "1",
        "NML_DISABLE_USER_ANALYTICS": "1",
        # On import it would load the next .env file above its own folder, which is that of this repository.
        "PYTHON_DOTENV_DISABLED": "1",
    }
)

_DEFAULT_CHUNKS = 10
_METHOD = "jensen_shannon"


def fit(reference: pd.DataFrame, chunk_rows: int | None) -> Callable[[pd.DataFrame], Verdict]:
    """What judges a batch by a calculator fitted on ``reference`` in chunks of ``chunk_rows`` rows.

    ``None`` leaves the default of ten chunks. A remainder never becomes a chunk of its own, as it does by default: the
    distance of a handful of rows would lift every threshold out of reach.
    """
    from nannyml import UnivariateDriftCalculator  # type: ignore[import-not-found]
    from nannyml.chunk import CountBasedChunker, SizeBasedChunker  # type: ignore[import-not-found]

    time = EVENT_TIME if EVENT_TIME in reference.columns else None
    columns = [column for column in reference.columns if column != EVENT_TIME]
    chunker = None
    if chunk_rows is None:
        reference = reference.head(len(reference) // _DEFAULT_CHUNKS * _DEFAULT_CHUNKS)
    else:
        chunker = SizeBasedChunker(chunk_rows, incomplete="append", timestamp_column_name=time)
    calculator = UnivariateDriftCalculator(column_names=columns, timestamp_column_name=time, chunker=chunker)
    calculator.fit(reference)
    calculator.chunker = CountBasedChunker(1, timestamp_column_name=time)

    def judge(current: pd.DataFrame) -> Verdict:
        (chunk,) = calculator.calculate(current).filter(period="analysis").to_df().to_dict("records")
        # An alert is NaN where no distance could be computed.
        alerts = {column: chunk[column, _METHOD, "alert"] for column in columns}
        flagged = [column for column, alert in alerts.items() if alert is True]
        return Verdict(bool(flagged), flagged, sum(isinstance(alert, bool) for alert in alerts.values()))

    return judge


if __name__ == "__main__":
    # Slow, and not part of any batch's time.
    import nannyml  # noqa: F401

    # A batch is one chunk on purpose; the library warns below six.
    warnings.filterwarnings("ignore", message="The resulting number of chunks is too low")
    options = Options.from_arguments()
    by_batch = options.reference_chunks == "batch"
    answer(options, lambda reference, first_rows: fit(reference, first_rows if by_batch else None))
