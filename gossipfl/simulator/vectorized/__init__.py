"""All nodes at once: models as (N, P) blocks, local steps in batches, exchanges as array operations. No messages.

The training, mixing and correction are those of gossipfl.learning, which deployed nodes run; what is left out is the
protocol: an exchange here is arithmetic. `simulate` is the door; `Method`, `Faults` and `Plan` say what to do.
"""
