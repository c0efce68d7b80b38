"""Floor 3: the transformer F_theta, the denoiser D_theta around it, and the uncertainty u(sigma)."""
