"""Tables of names: how other libraries call the tensors that our own modules hold."""
