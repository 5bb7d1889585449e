"""The generative model in pure PyTorch: splats, their rasterizer, the denoiser that emits them, its samplers."""
