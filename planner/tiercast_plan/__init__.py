"""What to do: does it fit, what does it cost, how does that change with the inputs.

Modelling assumptions A20 to A29 live here; docs/cost.md lists them.
"""
