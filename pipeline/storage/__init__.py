"""Files at any URL: whole or not there at all, and what more than one kind of file shares."""
