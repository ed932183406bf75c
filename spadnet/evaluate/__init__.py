"""What a trained model is worth: figures beside baselines, and the report that shows them."""
