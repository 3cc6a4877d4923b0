"""Does routing pay on these prompts, and what can be promised: guarantees, the audit, its page."""
