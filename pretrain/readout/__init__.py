"""How good are an encoder's features? Linear classifiers and nearest neighbours on every stage's pooled output."""
