"""Hand-overs to other libraries, one module each. None is imported unless it is asked for."""
