"""What an answer must look like: schemas, expressions and grammars, stop strings, budgets of thought."""
