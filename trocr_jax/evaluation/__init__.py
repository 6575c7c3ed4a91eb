"""How well lines are read: error rates, as published, and reports."""
