"""How numbers are made: the plan of a run, its processes, clocks, guards, memory and the machine's ceilings."""
