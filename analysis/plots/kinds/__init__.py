"""One file per kind of picture: a function `draw`, registered with `picture`; the file's name is the kind's."""
