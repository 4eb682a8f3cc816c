//! Pure but for reading the arguments. What the process is told on its command line: the only list of its flags.
