"""Food packages that never existed, drawn: what `python -m data_prep nutrition` photographs."""
