"""Programs sent as text to lab hosts and run there by `python3 -c`; see hil.transport.agent."""
