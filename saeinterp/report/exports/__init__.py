"""What a report is handed to other tools as: CSV, a JSON Schema, Neuronpedia's files, a model card."""
