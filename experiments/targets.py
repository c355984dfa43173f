"""stub"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    claim: str
