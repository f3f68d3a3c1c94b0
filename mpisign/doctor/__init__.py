"""The command that says what is wrong with a machine, its MPI or how ranks were started."""
