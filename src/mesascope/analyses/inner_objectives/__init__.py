"""Inner objectives: functions of a token's representation that residual updates may descend."""
