"""One file per table: what it computes, how its rows read, what is said under it. The file's name is the table's."""
