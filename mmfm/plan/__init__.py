"""What a run would take on other machines: memory by name, time, traffic and cost, before anything is bought."""
