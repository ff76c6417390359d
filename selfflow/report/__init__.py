"""The report of a run or a sweep: one HTML page, and its figures as CSV."""
