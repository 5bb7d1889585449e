"""Data in motion: photographs in, training, splats out to Parquet, pictures out of stored splats."""
