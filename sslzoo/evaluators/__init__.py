"""Protocols that judge a backbone: one file each; a protocol's name is its file's name.

A file holds
    VERSION                     raised when the protocol's numbers change
    Config                      dataclass of its options; those of every protocol are in `Common`
    evaluate(subject, config)   -> Result: rows of (metric, value, std), pictures, details
    unsuitable(subject)         optional: why `sslzoo evaluate all` leaves it out here, or None

and calls the functions of sslzoo.evaluation, which take features and labels and return numbers.
A file added here is found by `sslzoo evaluate`, `sslzoo list` and `all`; nothing else names it.
"""
