"""What the command line and a server of the same user have in common: where they meet, and what they say there.

    place.py      the socket in the user's run-time folder: made, checked, found
    documents.py  what goes over it: plain data, checked when it is read

Neither side imports the other. docs/one-server.md draws it.
"""
