"""Local verification: what a rewrite changed is cut out of both programs and compared by itself.

The cost follows the change: two regions that are given the same values have to return the same. A region that
cannot be cut, or that differs on random values, says nothing yet: then the whole has to decide.
"""

from fxprune.verify.local.functions import LocalFunctions
from fxprune.verify.local.proof import CannotCompareError
from fxprune.verify.local.seen import Seen
from fxprune.verify.local.whole import Whole, compare_plan

__all__ = ["CannotCompareError", "LocalFunctions", "Seen", "Whole", "compare_plan"]
