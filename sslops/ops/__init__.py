"""One folder per op: the public function, its specification and its backends."""
