"""Parity of jattn.nn.torch with torch.nn, which is its own reference: torch_ref has none of it."""
