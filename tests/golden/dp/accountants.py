"""Epsilons of the Poisson-sampled Gaussian mechanism by Google's dp-accounting, for `src/fl/way/account`.

    pip install dp-accounting==0.6.0
    python tests/golden/dp/accountants.py > tests/golden/dp/accountants.json
"""

import importlib.metadata
import json

import dp_accounting
from dp_accounting import pld, rdp

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


cases = []
for rate, multiplier, rounds, delta in CASES:
    accountant = rdp.RdpAccountant()
    by_rdp = epsilon(accountant, rate, multiplier, rounds, delta)
    order = float(accountant.get_epsilon_and_optimal_order(delta)[1])
    by_pld = epsilon(pld.PLDAccountant(value_discretization_interval=1e-4), rate, multiplier, rounds, delta)
    case = {"rate": rate, "multiplier": multiplier, "rounds": rounds, "delta": delta, "rdp": by_rdp, "order": order,
            "pld": by_pld}
    cases.append(case)
print(json.dumps({"dp-accounting": importlib.metadata.version("dp-accounting"), "cases": cases}, indent=1))
