"""The rooms that know an inference library; the protocols they offer are defined where they are used."""
