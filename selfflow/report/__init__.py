"""Report of a run or a sweep as one HTML page, with its numbers as CSV files."""
