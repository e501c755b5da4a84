"""How a shard lies on disk: as an Arrow file or a Zarr group."""
