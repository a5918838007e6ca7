"""Where the jobs of a sweep run: each is the plain command of one run, in a process of its own."""
