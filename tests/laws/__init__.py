"""Laws that hold across packages: spent at most what was planned, audits below what was stated.

Where the rules about what stands around a guarantee are held:

- randomness inside a model is part of the mechanism: `test_model_draws.py`;
- a model is made anew, and a fresh one is published: `tests/runs/test_publishing.py`,
  `tests/runs/test_earlier.py`;
- what stands beside a guarantee is released, too: `tests/runs/test_comparing.py`, `test_card.py`,
  `tests/report/test_publishing.py`;
- how rows were split is part of the mechanism: `test_split.py`, `tests/data/test_federation.py`;
- no two fits share noise: `tests/runs/test_roots.py`, `tests/core/test_identity.py`;
- the aggregator trusts nobody: `test_deviating_parties.py`;
- a row is alone: `tests/gradients/test_alone.py`, `test_sensitivity.py`;
- one observer, one unit, one guarantee: `tests/ledgers/test_study.py`,
  `tests/report/test_summary.py`.
"""
