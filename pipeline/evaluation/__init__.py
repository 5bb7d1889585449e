"""How near generated pictures come to photographs: measures, the same on Ray, and the report."""
