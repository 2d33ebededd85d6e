"""The words of torpor: ids, shapes, states, the error tree. No I/O, no clock."""
