"""Weights that make the holdout resemble the window, and the regression that they are learned with.

Pure functions of encoded columns; must not know a metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.estimation.rows import Sides

    Floats = NDArray[np.float64]

# Rows per side from which the density ratio is learned.
_RATIO_ROWS = 5_000
# Weights are flattened until the weighted holdout is worth this share of its rows: beyond it the noise that weights add
# exceeds the bias that they take away (measured in simulations with one to seven moved features).
_MIN_EFFECTIVE = 0.7
_POWERS = (0.5, 0.4, 0.3, 0.2, 0.1)
_PENALTY_INTERCEPT, _PENALTY = 1e-3, 5.0
# Steps shrink quadratically: after one of a thousandth what is left to go is about a millionth.
_NEWTON_STEPS, _LONGEST_STEP, _CONVERGED, _TINY = 25, 3.0, 1e-3, 1e-6


def likeness(sides: Sides) -> Floats:
    """Weights (mean 1) that make the holdout resemble the window, flattened as far as the holdout's size demands.

    The density ratio is the odds of a classifier that tells the sides apart; raised to a power below one it trades bias for
    variance (Shimodaira 2000), none of it being left when the sides hardly overlap.
    """
    both = np.vstack([sides.held[:_RATIO_ROWS], sides.now[:_RATIO_ROWS]])
    from_window = np.repeat([0.0, 1.0], [min(len(sides.held), _RATIO_ROWS), min(len(sides.now), _RATIO_ROWS)])
    penalty = np.full(2 * both.shape[1] + 1, _PENALTY)
    penalty[0] = _PENALTY_INTERCEPT
    start = np.zeros(len(penalty))
    start[0] = logit(from_window.mean())
    fitted = ridge_logistic(_curved(both), from_window, np.ones(len(both)), penalty, start)
    log_ratio = _curved(sides.held) @ fitted
    log_ratio -= log_ratio.max()
    for power in _POWERS:
        weights: Floats = np.exp(power * log_ratio)
        weights /= weights.mean()
        if len(weights) / float(np.mean(weights**2)) >= _MIN_EFFECTIVE * len(weights):
            return weights
    return np.ones(len(weights))


def _curved(columns: Floats) -> Floats:
    """With an intercept, and every column also squared: a changed spread is a change too."""
    return np.hstack([np.ones((len(columns), 1)), columns, columns**2 - 1.0])


def ridge_logistic(columns: Floats, truth: Floats, weights: Floats, penalty: Floats, start: Floats) -> Floats:
    """Coefficients of a weighted logistic regression with ridge penalties, by Newton's method from ``start``."""
    found = start.copy()
    # Half the bytes, half the time: the gradient alone decides where the steps lead, the Hessian how many they are.
    rough = columns.astype(np.float32)
    for _ in range(_NEWTON_STEPS):
        chance = expit(columns @ found)
        gradient = columns.T @ (weights * (truth - chance)) - penalty * found
        step = cho_solve(cho_factor(_hessian(rough, weights, penalty, chance)), gradient)
        longest = float(np.abs(step).max())
        found += step * min(1.0, _LONGEST_STEP / max(longest, _TINY))
        if longest < _CONVERGED:
            break
    return found


def inverse_hessian(columns: Floats, weights: Floats, penalty: Floats, found: Floats) -> Floats:
    """The inverse of the penalised Hessian at the coefficients ``found``: what `ridge_logistic` leaves open of them."""
    factor = cho_factor(_hessian(columns, weights, penalty, expit(columns @ found)))
    inverse: Floats = cho_solve(factor, np.eye(len(found)))
    return inverse


def _hessian(columns: NDArray[Any], weights: Floats, penalty: Floats, chance: Floats) -> Floats:
    """The penalised Hessian, as precise as ``columns``."""
    bent = columns * np.sqrt(weights * chance * (1 - chance))[:, None].astype(columns.dtype)
    # Of one matrix with itself numpy computes only half of the products.
    product: Floats = (bent.T @ bent).astype(np.float64)
    product[np.diag_indices_from(product)] += penalty
    return product
