"""The embedded base, `builtin:mini`: the paper-doll world, the training that learns it, and `mini.safetensors`."""
