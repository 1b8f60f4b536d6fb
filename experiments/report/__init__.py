"""The page, the story, the disputes, and the tables of the README and the site."""
