"""What a job is and where it is kept: spec, states, errors, records, queue. No torch, no HTTP."""
