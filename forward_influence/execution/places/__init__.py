"""Where documents are measured: one file each, with `make(recipe, cluster) -> Executor | None`; its name is typed."""
