"""Source annotations → the prepared data set: python -m data_prep FORMAT SOURCE --out DIR."""
