"""Where and how a program runs: machine, processes, devices, ranks, folders that are written whole."""
