"""How fast it all is: the parts on one device, and the whole jobs on more and more of them."""
