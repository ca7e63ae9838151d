"""Images for the models: from pixels to the rows that stand among a prompt's embeddings."""
