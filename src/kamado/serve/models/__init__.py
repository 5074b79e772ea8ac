"""Models as the server sees them: found by name, loaded, shared, and given up when others need the room."""
