"""`gossipfl bench`: methods side by side on one task, budget and seeds; what holds, with intervals. Rooms: see the files.

Not here: how a method works (simulator.vectorized), what data there are (gossipfl.tasks), what is printed (cli.bench).
"""
