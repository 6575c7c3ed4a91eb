"""The network: pure linen modules, arrays in, arrays out."""
