"""What changed between two sets of runs: results, reasons, speed, and what they ran on."""
