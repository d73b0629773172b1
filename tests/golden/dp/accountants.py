"""Epsilons of the Poisson-sampled Gaussian mechanism by Google's dp-accounting, for `src/fl/way/account`.

`rdp` is dp-accounting's with its own orders: at those that are not whole, version 0.6 adds the magnitudes of an
alternating series, an upper bound, and leaves orders out where that does not converge. `rdp_whole` is its value over whole
orders alone, where it is exact; `divergences` are Renyi divergences at others, by numerical integration.

    pip install dp-accounting==0.6.0
    python tests/golden/dp/accountants.py > tests/golden/dp/accountants.json
"""

import importlib.metadata
import json
import math

import dp_accounting
from dp_accounting import pld, rdp
from scipy.integrate import quad

CASES = [
    # rate, multiplier, rounds, delta
    (0.01, 1.0, 1000, 1e-5),
    (0.01, 0.7, 100, 1e-5),
    (0.4, 1.0, 4, 1e-5),
    (0.4, 2.0, 100, 1e-3),
    (0.4, 5.0, 200, 1e-5),
    (0.1, 0.6, 5, 1e-5),
    (0.2, 1.5, 1, 1e-6),
    (1.0, 4.0, 50, 1e-5),
    (0.001, 0.6, 5000, 1e-6),
    (0.08, 8.0, 10, 1e-5),
]


def epsilon(accountant, rate, multiplier, rounds, delta):
    event = dp_accounting.GaussianDpEvent(multiplier)
    if rate < 1.0:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    return float(accountant.compose(event, rounds).get_epsilon(delta))


WHOLE = list(range(2, 64)) + [128, 256, 512, 1024]


def divergence(rate, multiplier, order):
    """By integration: ln E[(1 - q + q e^((2x - 1) / 2z^2))^order] / (order - 1), x normal with deviation z."""
    z = multiplier

    def density(x):
        ratio = (1 - rate) + rate * math.exp((2 * x - 1) / (2 * z * z))
        return math.exp(-x * x / (2 * z * z)) / (z * math.sqrt(2 * math.pi)) * ratio**order

    points = [0.0, 1.0, order]
    whole, _ = quad(density, -40 * z, order + 40 * z, epsabs=0, epsrel=1e-12, limit=2000, points=points)
    return math.log(whole) / (order - 1)


cases = []
for rate, multiplier, rounds, delta in CASES:
    cases.append({
        "rate": rate,
        "multiplier": multiplier,
        "rounds": rounds,
        "delta": delta,
        "rdp": epsilon(rdp.RdpAccountant(), rate, multiplier, rounds, delta),
        "rdp_whole": epsilon(rdp.RdpAccountant(orders=WHOLE), rate, multiplier, rounds, delta),
        "pld": epsilon(pld.PLDAccountant(value_discretization_interval=1e-4), rate, multiplier, rounds, delta),
    })
divergences = [
    {"rate": rate, "multiplier": multiplier, "order": order, "divergence": divergence(rate, multiplier, order)}
    for rate, multiplier in [(0.4, 2.0), (0.4, 5.0), (0.1, 0.6), (0.01, 0.7)]
    for order in [1.1, 1.5, 2.5, 5.5]
]
version = importlib.metadata.version("dp-accounting")
print(json.dumps({"dp-accounting": version, "cases": cases, "divergences": divergences}, indent=1))
