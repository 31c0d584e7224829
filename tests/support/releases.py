"""What the tests publish: each content answers otherwise than the others."""

from flagcast_shared.ids import FlagKey
from flagcast_shared.model import BooleanFlag

BETA = FlagKey("beta")
OFF = BooleanFlag(BETA, enabled=False)
ON = BooleanFlag(BETA, enabled=True)
OTHER = BooleanFlag(FlagKey("other"), enabled=True)
EVIL = BooleanFlag(FlagKey("evil"), enabled=True)
