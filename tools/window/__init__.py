"""Runs the suite on each set of versions in constraints/, and writes down what passed. It needs nothing but Python."""
