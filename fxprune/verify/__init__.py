"""Verification: two computations run on the same random inputs and held against each other, number by number.

`compare_runs` is the loop; the other comparisons state what is run against what:

- `compare_programs`: a smaller program against the silenced original;
- `compare_functions`: a rewritten program against the program before;
- `compare_model`: a program against the model from which it was captured;
- `compare_gradients`: the same for one backward, where a model trains.
"""

from __future__ import annotations

from fxprune.verify.agreement import (
    check_capture,
    check_numbers,
    check_sizes,
    compare_model,
    forward_failed,
    needs_data,
    run_example,
)
from fxprune.verify.check import TOLERANCE, Check, compare_runs, relative_error
from fxprune.verify.equivalence import compare_functions, in_double, new_types
from fxprune.verify.gradients import compare_gradients
from fxprune.verify.how import How, Verify, how_to_verify
from fxprune.verify.inputs import Batch, batches_of
from fxprune.verify.noise import noisy, randomised
from fxprune.verify.reference import Silenced
from fxprune.verify.silenced import compare_programs

__all__ = [
    "TOLERANCE",
    "Batch",
    "Check",
    "How",
    "Silenced",
    "Verify",
    "batches_of",
    "check_capture",
    "check_numbers",
    "check_sizes",
    "compare_functions",
    "compare_gradients",
    "compare_model",
    "compare_programs",
    "compare_runs",
    "forward_failed",
    "how_to_verify",
    "in_double",
    "needs_data",
    "new_types",
    "noisy",
    "randomised",
    "relative_error",
    "run_example",
]
