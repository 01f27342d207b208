"""How close estimated performance comes to realised performance, and whether a changed concept is noticed at once.

Worlds of four shapes, each with a model trained on 10,000 rows, a holdout of 5,000 and windows of 20,000 rows whose inputs
have moved (means, spreads, mix of subpopulations: up to one standard deviation in features that matter). Beside the estimate
stand plain confidence-based estimation (isotonic calibration on the unweighted holdout) and no estimation at all (the holdout's
own metric). `python -m benchmarks.decisions.estimation [cases [seed]]` prints the figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression

from pipeline.estimates import Matured, judge
from pipeline.estimation import Holdout, Window, expect
from pipeline.metrics import Outcomes, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.estimates import Expected
    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]

TRAINED, HELD, WINDOW, FEATURES = 10_000, 5_000, 20_000, 20
SHAPES = ("additive", "interacting", "segmented", "heavy_tailed")
_SEGMENTS = 4
# Shifted windows that one trained model is measured on, beside one window that is like the holdout.
_SHIFTS_PER_WORLD = 3


@dataclass(frozen=True)
class Shift:
    """What has happened to the inputs: added to and multiplied with features, shares of the segments."""

    added: Floats
    multiplied: Floats
    mix: Floats


class World:
    """A population of one shape with a concept of its own; rows come with their text segment as the last feature."""

    def __init__(self, shape: str, rng: np.random.Generator) -> None:
        self.shape = shape
        self.rng = rng
        self.main = rng.permutation(FEATURES - 1)[: rng.integers(4, 9)]
        self.slopes = rng.uniform(0.3, 1.0, len(self.main)) * rng.choice([-1, 1], len(self.main))
        # The first of the main features is the one whose meaning a flipped concept inverts.
        self.slopes[0] = rng.choice([-1, 1]) * rng.uniform(0.9, 1.2)
        self.by_segment = rng.normal(0, 0.6, (_SEGMENTS, len(self.main)))
        self.centres = rng.normal(0, 0.6, (_SEGMENTS, FEATURES))
        self.offset = rng.normal(0, 0.5)

    def shift(self) -> Shift:
        """A random change of the inputs: of means, of spreads, of the mix, or of all three."""
        kind = self.rng.choice(["mean", "spread", "mix", "all"])
        added, multiplied = np.zeros(FEATURES), np.ones(FEATURES)
        mix = np.full(_SEGMENTS, 1 / _SEGMENTS)
        touched = self.rng.choice(self.main, self.rng.integers(1, 4), replace=False)
        if kind in ("mean", "all"):
            added[touched] = self.rng.uniform(-1, 1, len(touched))
        if kind in ("spread", "all"):
            multiplied[touched] = self.rng.uniform(0.5, 2.0, len(touched))
        if kind in ("mix", "all"):
            mix = self.rng.dirichlet(np.ones(_SEGMENTS))
        return Shift(added, multiplied, mix)

    def draw(self, rows: int, shift: Shift | None = None, *, is_flipped: bool = False) -> tuple[pd.DataFrame, Floats]:
        """Features, and what the labels are drawn from: log odds (binary) or the mean of the number."""
        segment = self.rng.choice(_SEGMENTS, rows, p=shift.mix if shift else None)
        if self.shape == "heavy_tailed":
            values = self.rng.standard_t(4, (rows, FEATURES)) / np.sqrt(2)
        else:
            values = self.rng.normal(size=(rows, FEATURES))
        if self.shape == "segmented":
            values += self.centres[segment]
        if shift:
            values = values * shift.multiplied + shift.added
        seen = values[:, self.main].copy()
        if is_flipped:
            seen[::2, 0] *= -1
        signal = self._signal(seen, segment)
        frame = pd.DataFrame(values, columns=[f"x{index}" for index in range(FEATURES)])
        if self.shape == "heavy_tailed":
            frame = frame.mask(self.rng.random(frame.shape) < 0.03)
        frame[f"x{FEATURES - 1}"] = np.array([f"segment {index}" for index in range(_SEGMENTS)], dtype=object)[segment]
        return frame, signal

    def _signal(self, seen: Floats, segment: NDArray[Any]) -> Floats:
        signal: Floats = self.offset + seen @ self.slopes
        if self.shape == "interacting":
            signal += 0.7 * seen[:, 1] * seen[:, 2] + np.sin(2 * seen[:, 3]) - np.maximum(seen[:, 0], 0)
        if self.shape == "segmented":
            signal += np.einsum("ij,ij->i", seen, self.by_segment[segment]) + 0.4 * segment
        if self.shape == "heavy_tailed":
            signal = self.offset + 2 * np.tanh(seen) @ self.slopes
        return signal


def measure(cases: int = 100, seed: int = 0) -> dict[str, Any]:
    """Accuracy of estimates over at least that many shifted windows per task, and what is made of them.

    Errors are differences of the AUC, and relative differences of the mean absolute error. The shares of windows that were
    covered by the band, of invalidations without a cause and of flips that were noticed are also over windows without a shift.
    """
    return {"binary": _binary(cases, seed), "regression": _regression(cases, seed)}


def _worlds(cases: int, seed: int) -> list[World]:
    count = -(-cases // _SHIFTS_PER_WORLD)
    return [World(SHAPES[index % len(SHAPES)], np.random.default_rng([seed, index])) for index in range(count)]


def _plain_auc(holdout: Holdout, scores: NDArray[Any]) -> float:
    """Confidence-based estimation as usual: isotonic calibration, then the AUC over the calibrated chances."""
    calibration = IsotonicRegression(out_of_bounds="clip").fit(holdout.scores, holdout.truth == "yes")
    order = np.argsort(scores)
    chance = calibration.predict(scores[order])
    negatives = np.cumsum(1 - chance) - (1 - chance) / 2
    return float(chance @ negatives / (chance.sum() * (1 - chance).sum()))


def _binary(cases: int, seed: int) -> dict[str, Any]:
    errors: dict[str, list[float]] = defaultdict(list)
    by_shape: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, list[float]] = defaultdict(list)
    for world in _worlds(cases, seed):
        rows, target = world.draw(TRAINED)
        model = HistGradientBoostingClassifier(
            learning_rate=0.08, l2_regularization=1.0, early_stopping=False, random_state=0
        )
        model.fit(_numeric(rows), _answers(target, world.rng) == "yes")
        holdout = _holdout(model, world)
        for shift in [None, *(world.shift() for _ in range(_SHIFTS_PER_WORLD))]:
            window, truth = _rows(model, world, WINDOW, shift, is_flipped=False)
            assert window.scores is not None
            started = time.perf_counter()
            expected = expect("binary", "roc_auc", holdout, window)
            facts["seconds"].append(time.perf_counter() - started)
            assert expected is not None
            realised = _auc(truth, window.scores)
            if shift:
                errors["estimated"].append(expected.value - realised)
                errors["plain"].append(_plain_auc(holdout, window.scores) - realised)
                errors["holdout"].append(_auc(holdout.truth, holdout.scores) - realised)
                by_shape[world.shape].append(expected.value - realised)
            facts["covered"].append(expected.low <= realised <= expected.high)
            facts["false_invalidation"].append(not _is_valid(expected, "roc_auc", realised))
            facts["half_width"].append((expected.high - expected.low) / 2)
            flipped, truth = _rows(model, world, WINDOW, shift, is_flipped=True)
            expected = expect("binary", "roc_auc", holdout, flipped)
            assert expected is not None
            realised = _auc(truth, flipped.scores)
            facts["lost_by_flip"].append(expected.value - realised)
            facts["flip_flagged"].append(not _is_valid(expected, "roc_auc", realised))
    return {
        "shifted_windows": len(errors["estimated"]),
        **{name: _summary(values, 0.02) for name, values in errors.items()},
        "estimated_by_shape": {name: _summary(values, 0.02) for name, values in by_shape.items()},
        **{name: round(float(np.mean(values)), 4) for name, values in facts.items()},
    }


def _regression(cases: int, seed: int) -> dict[str, Any]:
    errors: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, list[float]] = defaultdict(list)
    for world in _worlds(cases, seed):
        rows, mean = world.draw(TRAINED)
        model = HistGradientBoostingRegressor(early_stopping=False, random_state=0)
        model.fit(_numeric(rows), _amounts(rows, mean, world))
        held, mean = world.draw(HELD)
        holdout = Holdout(held, None, model.predict(_numeric(held)), _amounts(held, mean, world))
        usual = float(np.abs(holdout.prediction - holdout.truth).mean())
        for shift in [None, *(world.shift() for _ in range(_SHIFTS_PER_WORLD))]:
            features, mean = world.draw(WINDOW, shift)
            window = Window(features, None, model.predict(_numeric(features)))
            realised = float(np.abs(window.prediction - _amounts(features, mean, world)).mean())
            expected = expect("regression", "mae", holdout, window)
            assert expected is not None
            if shift:
                errors["estimated"].append(expected.value / realised - 1)
                errors["holdout"].append(usual / realised - 1)
            facts["covered"].append(expected.low <= realised <= expected.high)
            facts["false_invalidation"].append(not _is_valid(expected, "mae", realised))
    return {
        "shifted_windows": len(errors["estimated"]),
        **{name: _summary(values, 0.1) for name, values in errors.items()},
        **{name: round(float(np.mean(values)), 4) for name, values in facts.items()},
    }


def _is_valid(expected: Expected, metric: MetricName, realised: float) -> bool:
    matured = Matured(expected.value, expected.low, expected.high, realised)
    return judge(expected, metric=metric, limit=None, history=[matured]).is_valid


def _summary(errors: list[float], bound: float) -> dict[str, float]:
    size = np.abs(errors)
    figures = {
        f"within_{bound}": np.mean(size <= bound),
        "mean_error": np.mean(size),
        "p90_error": np.quantile(size, 0.9),
        "bias": np.mean(errors),
    }
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    last = f"x{FEATURES - 1}"
    return frame.assign(**{last: frame[last].str[-1].astype(float)})


def _answers(log_odds: Floats, rng: np.random.Generator) -> NDArray[Any]:
    return np.where(rng.random(len(log_odds)) < expit(log_odds), "yes", "no").astype(object)


def _amounts(rows: pd.DataFrame, mean: Floats, world: World) -> Floats:
    """Numbers around their mean, more scattered where a main feature is high, so that errors depend on the inputs."""
    scatter = 0.5 + expit(rows[f"x{world.main[1]}"].fillna(0).to_numpy(dtype=float) * 1.5)
    noise: Floats = mean + scatter * world.rng.normal(size=len(rows))
    return noise


def _holdout(model: HistGradientBoostingClassifier, world: World) -> Holdout:
    window, truth = _rows(model, world, HELD, None, is_flipped=False)
    return Holdout(window.features, window.scores, window.prediction, truth)


def _rows(
    model: HistGradientBoostingClassifier, world: World, rows: int, shift: Shift | None, *, is_flipped: bool
) -> tuple[Window, NDArray[Any]]:
    features, log_odds = world.draw(rows, shift, is_flipped=is_flipped)
    scores = model.predict_proba(_numeric(features))[:, 1]
    prediction = np.where(scores >= 0.5, "yes", "no").astype(object)
    return Window(features, scores, prediction), _answers(log_odds, world.rng)


def _auc(truth: NDArray[Any], scores: NDArray[Any] | None) -> float:
    assert scores is not None
    value = evaluate("roc_auc", Outcomes(truth, truth, np.column_stack([1 - scores, scores]), ("no", "yes")))
    assert value is not None
    return value


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(measure(*arguments), indent=2))
