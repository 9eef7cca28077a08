"""Self-supervised methods, one file each, on the operations of sslops."""
