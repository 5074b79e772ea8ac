"""Who gets how many bytes: the machine, the budget, the forecast of a model, and what was really used.

Here: arithmetic before a load, and looking at the system. Not here: taking the memory (native), nor acting when it gets
short (engine/schedule).
"""
