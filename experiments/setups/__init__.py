"""What several claims share: galleries, towers, designs of trained points, trends over seeds."""
