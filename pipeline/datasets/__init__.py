"""What a dataset on storage is: its frozen plan, its shards of splats, its commit records; how to read it."""
