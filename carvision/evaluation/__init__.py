"""What a network says of photos with known labels, and how good and how sure that is: pure functions of predictions."""
