"""How the steps are run: the stages of a run, one step, and the process from which kernels are forked."""
