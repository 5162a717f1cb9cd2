"""What is learned: the Task protocol, Site, Data, the study's schema, the built-in tasks, partitioners. No messages.

Importing this loads no torch; a task loads it when its model is asked for.
"""

from gossipfl.tasks.task import BUILT_IN, Data, Site, Task, load, pooled

__all__ = ["BUILT_IN", "Data", "Site", "Task", "load", "pooled"]
