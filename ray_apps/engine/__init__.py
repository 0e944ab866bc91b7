"""Generation on one replica, behind one Protocol. Serves replicas and local use alike."""
