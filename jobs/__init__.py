"""What a job is and where it is stored: spec, states, errors, records, queue. No torch, no HTTP."""
