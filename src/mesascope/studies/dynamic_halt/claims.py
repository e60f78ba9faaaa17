"""All claims of the study. Margins and thresholds are ours; they were fixed before the first run of the study."""

from mesascope.studies.base import Claim
from mesascope.studies.dynamic_halt.expression_claims import expression_claims
from mesascope.studies.dynamic_halt.flip_flop_claims import flip_flop_claims
from mesascope.studies.dynamic_halt.halting_claims import halting_claims

CLAIMS: tuple[Claim, ...] = (*flip_flop_claims(), *expression_claims(), *halting_claims())
