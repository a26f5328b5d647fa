"""References and hypotheses whose errors were counted by hand."""

# One substitution; one deletion; one insertion; none; all three words deleted.
REFERENCES = ["one two three", "four five", "six", "seven eight", "nine zero one"]
HYPOTHESES = ["one too three", "four", "six six", "seven eight", ""]
