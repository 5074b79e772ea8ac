"""HTTP: connections, the gate that every request passes, bodies, answers and keys."""
