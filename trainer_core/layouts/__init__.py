"""The published layouts of preference rows: a registry, and the decision which one a file has.

To add a layout, write a module with a `Layout` (cite its source in the docstring), list it in `PUBLISHED`, and add sample
rows to the tests, which try them against every other layout. No two layouts may claim the same rows.

The package knows nothing about bytes, files or tokens.
"""

from trainer_core.layouts.claims import Claim, Layout, Sample
from trainer_core.layouts.decision import PUBLISHED, Reading, claimants, decide

__all__ = ["PUBLISHED", "Claim", "Layout", "Reading", "Sample", "claimants", "decide"]
