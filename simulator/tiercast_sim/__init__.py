"""What is predicted: the discrete-event model of serving with tables in memory tiers."""
