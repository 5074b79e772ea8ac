"""Other programs that use the server: where each has its settings, what they must say, and what it asks first.

programs.py   the programs, one table
files.py      their files: changed in one place, the rest kept, a copy put aside
proof.py      one real request of each kind, its stream read as the program would and believed nothing
"""
