"""Sessions, scheduling, sampling and text: between a loaded model and its callers."""
