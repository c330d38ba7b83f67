import os

# Set before torch is imported. Tests compute small things: threads that wait for each other on a busy machine cost
# far more time than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
