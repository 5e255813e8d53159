"""Tables of what was measured, on the terminal and in a report: a file of `kinds` each, and a new one is in no list."""
