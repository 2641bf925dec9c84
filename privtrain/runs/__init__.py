"""One run and many: fitting, calibrating, auditing, comparing, tuning."""
