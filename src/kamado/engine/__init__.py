"""Sessions, scheduling, sampling and text: between a model that was loaded and whoever talks with it."""
