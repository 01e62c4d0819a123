"""What is known: units, errors, schemas, run records, statistics and shipped data.

The bottom of the house: every other package imports this one, it imports none of them.
"""

__version__ = "0.1.0"
