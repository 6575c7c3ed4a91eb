"""Search: greedy and beam, over a step function that knows tokens and scores, not models."""
