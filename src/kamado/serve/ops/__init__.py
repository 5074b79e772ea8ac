"""Running the server: health, metrics, settings that change, its share of memory, unit files."""
