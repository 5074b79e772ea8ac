"""One thread owns the executor: requests, admission, steps, and what picks the next token."""
